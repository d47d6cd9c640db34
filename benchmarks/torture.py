"""Kills small real runs at random moments and checks that each ends as one left alone.

    python benchmarks/torture.py [--kills 100] [--fresh 10] [--seed 0] [--out benchmarks/torture]

Every case begins a run in a process of its own, ends it by a signal (SIGKILL, SIGTERM or SIGINT) at a random moment,
and goes on with it; some are hit twice or three times before they may finish. After each signal every file that is
there must be whole; at the end the architecture, the weights of teacher and student and the figures of every epoch in
the journal must equal those of the run left alone, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from transprune.runtime import RUN_FILES, RunFolder, read_journal
from transprune.runtime.environment import environment

NETWORK = """
from torch import nn

def build(classes=10, image_channels=1):
    def block(inputs, outputs):
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, stride=2), nn.BatchNorm2d(outputs), nn.ReLU())
    return nn.Sequential(block(image_channels, 8), block(8, 8), nn.Dropout(0.1), nn.Flatten(), nn.Linear(32, classes))
"""
"""Small, and with random numbers of its own in the forward."""
EPOCHS = 3
OPTIONS = (
    *("--data", "digits", "--budget", "macs=0.6", "--preset", "quick", "--device", "cpu", "--checkpoint-steps", "5"),
    *("--search.prior", "none"),
    *(f"--{phase}.{name}={value}" for phase in ("teacher", "search", "distill") for name, value in (
        ("epochs", EPOCHS), ("warm-up-epochs", 1), ("batch-size", 64),
    )),
)  # fmt: skip
SAME = ("architecture.json", "space.json", "teacher.safetensors", "supernet.safetensors", "student.safetensors")
"""Files that must equal those of the run left alone, byte for byte."""
ENDS = {"SIGKILL": {0, -9}, "SIGTERM": {0, 143, -15}, "SIGINT": {0, 130, -2}}
"""How a process may end: it was through, it ended itself with its documented code, or the signal came before Python
could take it."""

Commands = list[list[str]]
Start = Callable[[Commands, Path], "Job"]


class Job:
    """A running command: what `subprocess` and `multiprocessing` have in common."""

    def __init__(self, pid: int, wait: Callable[[float | None], int | None]) -> None:
        self.pid, self.wait = pid, wait


def start_process(commands: Commands, log: Path) -> Job:
    """The commands in a fresh Python."""
    code = f"from transprune.cli import main\nfor command in {commands!r}: main(command)"
    with log.open("ab") as file:
        process = subprocess.Popen([sys.executable, "-c", code], stdout=file, stderr=file, cwd=log.parent)

    def wait(seconds: float | None) -> int | None:
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    return Job(process.pid, wait)


def start_fork(commands: Commands, log: Path) -> Job:
    """The same in a copy of a process that has imported everything."""
    return start_copy(_run_here, commands, log)


def start_copy(work: Callable[..., None], *arguments: object) -> Job:
    """A function of a module in a copy of a process that has imported everything (`torture_warm.py`)."""
    here = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torture_warm"])
    process = context.Process(target=work, args=arguments)
    process.start()
    assert process.pid is not None

    def wait(seconds: float | None) -> int | None:
        process.join(seconds)
        return process.exitcode

    return Job(process.pid, wait)


def _run_here(commands: Commands, log: Path) -> None:
    write_to(log)
    os.chdir(log.parent)
    import transprune.cli

    for command in commands:
        transprune.cli.main(command)


def write_to(place: Path) -> None:
    """Sends what this process writes to a file, or to a terminal."""
    with place.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115


@dataclass(frozen=True)
class Hit:
    """One signal."""

    signal: str
    records: int
    """How many records the journal had to have first; 0: none was waited for."""
    seconds: float
    """After that, or else after the start of the process."""
    is_late: bool
    """Whether the process had ended by itself before."""
    phase: str
    """The last phase that the journal knew."""
    code: int
    """Exit code of the process."""


@dataclass(frozen=True)
class Case:
    """One run with its hits, and what was wrong with it."""

    seed: int
    hits: list[Hit]
    faults: list[str]


def left_alone(place: Path, start: Start, job: JobOf) -> tuple[Path, float]:
    """A run without a hit, and how many seconds it took from the first record of its journal to the last."""
    place.mkdir(exist_ok=True)
    folder = place / "alone"
    code = start(job(place, folder), place / "alone.log").wait(None)
    if code != 0:
        raise RuntimeError(f"the run left alone ended with {code}: {(place / 'alone.log').read_text()}")
    first, last = (datetime.fromisoformat(read_journal(folder / "journal.jsonl")[place]["time"]) for place in (0, -1))
    return folder, (last - first).total_seconds()


def whole_run(place: Path, folder: Path) -> Commands:
    """The command that begins the run, or goes on with it."""
    network = place / "net.py"
    network.write_text(NETWORK)
    return [["run", f"{network}:build", "--out", str(folder), *OPTIONS]]


def training_alone(place: Path, folder: Path) -> Commands:
    """The same without evaluation, export and report."""
    ((_, *options),) = whole_run(place, folder)
    return [["search", *options], ["distill", str(folder), "--device", "cpu", "--checkpoint-steps", "5"]]


JobOf = Callable[[Path, Path], Commands]
WAYS: tuple[tuple[Start, JobOf], ...] = ((start_process, whole_run), (start_fork, training_alone))
"""How runs are started: a few as a user starts them, all others faster."""


def torture(seed: int, place: Path, alone: tuple[Path, float], start: Start, job: JobOf) -> Case:
    """One case.

    Args:
        seed: Decides signals and moments.
        place: Where to run.
        alone: The run left alone, and its seconds (`left_alone`).
        start: How to start a process.
        job: What to run in it.
    """
    draw, hits, faults, (whole, _) = random.Random(seed), [], [], alone
    folder, log = place / f"case{seed}", place / f"case{seed}.log"
    wanted = draw.choice([1, 1, 2, 3])
    while len(hits) < wanted and not faults:
        name, (records, moment) = draw.choice(list(ENDS)), random_moment(whole, draw)
        process = start(job(place, folder), log)
        wait_for_journal(process, folder, records)
        code = process.wait(moment)
        is_late = code is not None
        if code is None:
            os.kill(process.pid, signal.Signals[name])
            code = process.wait(120)
        if code is None:
            os.kill(process.pid, signal.SIGKILL)
            process.wait(None)
            faults.append(f"{name} did not end it in two minutes")
            break
        if code not in ENDS[name]:
            faults.append(f"ended with {code} after {name}")
        hits.append(Hit(name, records, round(moment, 3), is_late, phase_of(folder), code))
        faults += broken_files(folder)
        if all(hit.is_late for hit in hits):  # nothing was interrupted yet: begin anew
            shutil.rmtree(folder, ignore_errors=True)
            wanted += 1
    last = start(job(place, folder), log).wait(600)
    if last != 0:
        faults.append(f"going on ended with {last}: {log.read_text()[-2000:]}")
    else:
        faults += differences(folder, whole)
    return Case(seed, hits, faults)


def random_moment(alone: Path, draw: random.Random) -> tuple[int, float]:
    """A moment of the run left alone: records in its journal, and seconds since the last of them.

    Told so and not by the clock alone, since a busy machine may be several times slower in one run than in the next.
    One in ten lies in the first seconds of the process, whatever the journal says.
    """
    if draw.random() < 0.1:
        return 0, draw.uniform(0, 2)
    times = [datetime.fromisoformat(entry["time"]).timestamp() for entry in read_journal(alone / "journal.jsonl")]
    moment = draw.uniform(times[0], times[-1])
    records = sum(time <= moment for time in times)
    return records, moment - times[records - 1]


def wait_for_journal(process: Job, folder: Path, records: int) -> None:
    """Waits until the process has written in the journal, and that has so many records; or until the process ends."""
    journal = folder / "journal.jsonl"
    before = journal.stat().st_size if journal.exists() else 0
    while records and process.wait(0.01) is None:
        if journal.exists() and journal.stat().st_size > before and len(journal.read_bytes().splitlines()) >= records:
            return


def phase_of(folder: Path) -> str:
    """The last phase that a journal tells of."""
    if not (folder / "journal.jsonl").exists():
        return "before"
    phases = [entry["phase"] for entry in read_journal(folder / "journal.jsonl") if entry["event"] == "phase"]
    return phases[-1] if phases else "before"


def broken_files(folder: Path) -> list[str]:
    """What cannot be read of the files in a run folder."""
    readers = {
        ".json": RunFolder(folder).read_json,
        ".safetensors": RunFolder(folder).read_tensors,
        ".jsonl": lambda name: read_journal(folder / name),
        ".toml": lambda _: RunFolder(folder).config,
    }
    faults = []
    for name in RUN_FILES:
        read = readers.get(Path(name).suffix)
        if read is not None and (folder / name).exists():
            try:
                read(name)
            except Exception as error:
                faults.append(f"{name} is broken: {error}")
    return faults


def differences(folder: Path, alone: Path) -> list[str]:
    """Where a finished run differs from the one left alone."""
    faults = [f"{name} differs" for name in SAME if (folder / name).read_bytes() != (alone / name).read_bytes()]
    if figures(folder) != figures(alone):
        faults.append("the figures in the journal differ")
    strangers = {path.name for path in folder.iterdir()} - {path.name for path in alone.iterdir()}
    return [*faults, *(f"{name} was left over" for name in strangers)]


def figures(folder: Path) -> list[dict]:
    """Every epoch in the journal, in order, without times."""
    epochs = [entry for entry in read_journal(folder / "journal.jsonl") if entry["event"] == "epoch"]
    return [{key: value for key, value in entry.items() if key not in ("time", "seconds")} for entry in epochs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="runs that are hit (default: 100)")
    parser.add_argument("--fresh", type=int, default=10, help="of them as a user starts them (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first (default: 0)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "torture", help="where the results go")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name, (arguments.out / "cases.jsonl").open("w") as results:
        place = Path(name)
        alone = {job: left_alone(place / job.__name__, start, job) for start, job in WAYS}
        cases = []
        for number in range(arguments.kills):
            start, job = WAYS[number >= arguments.fresh]
            case = torture(arguments.seed + number, place / job.__name__, alone[job], start, job)
            cases.append(case)
            results.write(json.dumps(asdict(case)) + "\n")
            results.flush()
            print(f"case {case.seed}: {[(hit.signal, hit.phase) for hit in case.hits]} {case.faults or 'as alone'}")
    every = [hit for case in cases for hit in case.hits]
    hits = [hit for hit in every if not hit.is_late]
    summary = {
        "command": f"python benchmarks/torture.py --kills {arguments.kills} --fresh {arguments.fresh} "
        f"--seed {arguments.seed}",
        "options": list(OPTIONS),
        "runs": len(cases),
        "runs_with_faults": sum(bool(case.faults) for case in cases),
        "hits": len(hits),
        "too_late": len(every) - len(hits),
        "hits_by_signal": Counter(hit.signal for hit in hits),
        "hits_by_phase": Counter(hit.phase for hit in hits),
        "exit_codes": {name: Counter(hit.code for hit in hits if hit.signal == name) for name in ENDS},
        "seconds_alone": {job.__name__: round(seconds, 1) for job, (_, seconds) in alone.items()},
        "environment": environment(),
    }
    (arguments.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    sys.exit(bool(summary["runs_with_faults"]))


if __name__ == "__main__":
    main()
