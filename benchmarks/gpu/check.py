"""Twelve minutes that prove the library on a GPU: every stage within its time, its figures written before the next one.

    make gpu
    python benchmarks/gpu/check.py [--data parquet:DIR] [--weights FILE] [--stages NAME ...] [--out DIR]
    python benchmarks/gpu/check.py --device cpu --smoke      the same stages at a size that any machine can run

| stage | what it shows | seconds |
|---|---|---|
| `tests` | every test that has a device, on this one | 120 |
| `run` | `transprune run resnet20 --data digits`, killed in the search, and the same command again | 100 |
| `steps` | a search step beside a plain step, both eager and compiled, in both precisions; waits and memory | 200 |
| `loader` | images a second of the loader, and of the step that it must feed | 40 |
| `latency` | the backend `torch` here: the teacher and its half in turns | 30 |
| `cifar` | ResNet-20 on CIFAR-10: teacher, scores, search, distillation | 200 |
| `processes` | two processes, with nccl where there are two GPUs | 30 |

Each stage is a process of its own, so that a crash, a hang or memory that ran out ends this stage alone; what it had
measured until then is kept. The exit code is 1 where a stage failed, missed its time or a bar: a search step of
ResNet-56 in batches of 256 costs at most one plain step of the same precision and format, and none waits for the
device. Without `--data` the stage `cifar` learns random images, which shows its seconds and not its accuracy.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import transprune

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from search_step import HALF, Kind, medians, plain_step, step_of  # noqa: E402 (a script beside, found by its path)
from transprune.data import ImageData, MemorySplit, make_loader  # noqa: E402
from transprune.latency.stopwatch import measure_latencies  # noqa: E402
from transprune.models.by_name import build_model  # noqa: E402
from transprune.models.weights import load_weights  # noqa: E402
from transprune.options import LatencyOptions  # noqa: E402
from transprune.runtime.environment import environment  # noqa: E402

Record = dict[str, Any]
LIMITS = {"tests": 120, "run": 100, "steps": 200, "loader": 40, "latency": 30, "cifar": 200, "processes": 30}
"""Seconds of each stage, twelve minutes in all, in the order in which they run."""
SMOKE = 10
"""In a smoke test each stage has so many times as long: a busy CPU is no failure."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is done, so that a smoke test runs every line and takes a minute or two."""

    depth: int = 20
    """Of the ResNet where nothing else is said."""
    batch: int = 256
    images: int = 50_000
    samples: int = 512
    repeats: int = 15
    epochs: tuple[int, int, int] = (12, 5, 12)
    """Of the teacher, the search and the distillation."""
    cases: tuple[str, ...] = ("resnet56", "resnet20", "resnet110")
    """The networks whose steps are timed."""
    large: str = "torchvision:resnet50"
    side: int = 224
    large_batch: int = 64


SIZES = {
    False: Size(),
    True: Size(
        depth=8,
        batch=32,
        images=256,
        samples=64,
        repeats=2,
        epochs=(1, 1, 1),
        cases=("resnet8",),
        large="torchvision:resnet18",
        side=32,
        large_batch=8,
    ),
}
"""By whether it is a smoke test."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--smoke", action="store_true", help="the smallest size that runs every line")
    parser.add_argument("--data", help="CIFAR-10 for the stage `cifar`, such as parquet:DIR")
    parser.add_argument("--weights", help="a trained resnet20 for the stage `cifar`; without it one is trained")
    parser.add_argument("--stages", nargs="+", choices=list(LIMITS), default=list(LIMITS))
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--stage", choices=list(LIMITS), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    asked.size = SIZES[asked.smoke]
    if asked.device == "cuda" and not torch.cuda.is_available():
        sys.exit("cannot check a GPU: torch finds no CUDA device here; --device cpu --smoke runs the same on a CPU")
    asked.out.mkdir(parents=True, exist_ok=True)
    if asked.stage:
        write = Writer(asked.out / f"{asked.stage}.json")
        STAGES[asked.stage](asked, write)
        write({"is_complete": True})
        return
    begun = time.perf_counter()
    records = [supervised(name, asked) for name in asked.stages]
    text = summary(records, time.perf_counter() - begun)
    (asked.out / "summary.md").write_text(text)
    print(f"\n{text}")
    sys.exit(any(record["problems"] for record in records))


class Writer:
    """The record of a stage, written anew with each figure."""

    def __init__(self, path: Path) -> None:
        self.path, self.record = path, dict[str, Any]()

    def __call__(self, figures: Record) -> None:
        self.record.update(figures)
        self.path.write_text(json.dumps(self.record, indent=1) + "\n")


def supervised(name: str, asked: argparse.Namespace) -> Record:
    """One stage in a process group of its own, ended with all its children where its time is over."""
    path = asked.out / f"{name}.json"
    path.unlink(missing_ok=True)
    limit = LIMITS[name] * (SMOKE if asked.smoke else 1)
    print(f"{name}: at most {limit} s", flush=True)
    command = [sys.executable, __file__, *sys.argv[1:], "--stage", name]
    begun, problems = time.perf_counter(), []
    process = subprocess.Popen(command, start_new_session=True)
    try:
        if code := process.wait(limit):
            problems.append(f"ended with exit code {code}")
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        problems.append(f"was not done after {limit} s")
    record = json.loads(path.read_text()) if path.exists() else {}
    problems += record.get("missed", [])
    record |= {"stage": name, "seconds": time.perf_counter() - begun, "limit": limit, "problems": problems}
    path.write_text(json.dumps({**record, "environment": environment()}, indent=1) + "\n")
    print(f"{name}: {record['seconds']:.0f} s{''.join(f'; {each}' for each in problems)}", flush=True)
    return record


def summary(records: list[Record], seconds: float) -> str:
    """What a person reads first."""
    where = environment()
    lines = [
        f"{where['cuda_device'] or where['cpu']}, torch {where['torch']}, transprune {where['transprune']}: "
        f"{seconds:.0f} s for {len(records)} stages.",
        "",
        "| stage | seconds | of | told | problems |",
        "|---|---|---|---|---|",
    ]
    for record in records:
        told = "; ".join(record.get("told", []))
        lines.append(
            f"| {record['stage']} | {record['seconds']:.0f} | {record['limit']} | {told} | "
            f"{'; '.join(record['problems']) or 'none'} |"
        )
    return "\n".join(lines) + "\n"


# --- stages


HAVE_DEVICE = [f"tests/test_{name}.py" for name in ("device", "python", "seeds")]
"""The files that hold tests with a device."""


def tests(asked: argparse.Namespace, write: Writer) -> None:
    """Every test that has a device."""
    root = HERE.parent.parent
    chosen = ["-k", "untouched or supernet and dense"] if asked.smoke else []
    command = [sys.executable, "-m", "pytest", "-m", "device", "--device", asked.device, "-q", *HAVE_DEVICE]
    done = subprocess.run([*command, *chosen], cwd=root, capture_output=True, text=True, check=False)
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr.strip()
    write({"output": done.stdout[-4000:], "told": [last], "missed": [last] if done.returncode else []})


def run(asked: argparse.Namespace, write: Writer) -> None:
    """A whole run that is killed in its search, and goes on."""
    with tempfile.TemporaryDirectory() as place:
        command = [
            *(sys.executable, "-m", "transprune", "run", "resnet20", "--data", "digits", "--budget", "macs=0.5"),
            *("--preset", "quick", "--out", f"{place}/run", "--device", asked.device, "--checkpoint-minutes", "0.02"),
        ]
        if asked.smoke:
            for phase in ("teacher", "search", "distill"):
                command += [f"--{phase}.epochs=2", f"--{phase}.warm-up-epochs=0"]
        begun, log = time.perf_counter(), Path(place, "log")
        with log.open("w") as output:
            first = subprocess.Popen(command, stdout=output, stderr=output)
            while first.poll() is None and "search: epoch 1" not in log.read_text():
                time.sleep(0.05)
            first.kill()
            is_killed = first.wait() == -signal.SIGKILL
        write({"killed_in_the_search": is_killed, "seconds_until_killed": time.perf_counter() - begun})
        second = subprocess.run(command, capture_output=True, text=True, check=False)
        write({"output": second.stdout[-2000:], "error": second.stderr[-2000:], "exit_code": second.returncode})
        result = json.loads(Path(place, "run", "result.json").read_text()) if second.returncode == 0 else {}
    missed = [] if is_killed else ["the first run was over before it could be killed"]
    missed += [] if second.returncode == 0 else ["the second run failed"]
    student = result.get("student", {})
    told = [f"killed and done in {time.perf_counter() - begun:.0f} s", f"student top-1 {student.get('top1', '–')} %"]
    write({"result": result, "told": told, "missed": missed})


def steps(asked: argparse.Namespace, write: Writer) -> None:
    """Search steps beside plain ones; the bar is that of ResNet-56 in batches of 256."""
    batch = asked.size.batch
    rows: list[Record] = []
    missed: list[str] = []
    for precision in ("float32", "bfloat16"):
        for network in asked.size.cases:
            row = {"network": network, "batch": batch, "precision": precision}
            row |= step_times(network, batch, precision, asked)
            rows.append(row)
            if network == "resnet56" and row["ratio"] > 1 and asked.device == "cuda":
                missed.append(f"a search step of {network} in {precision} costs {row['ratio']:.2f} plain ones")
            if row["waits"]:
                missed.append(f"a step of {network} waits {row['waits']} times")
            told = [f"{r['network']} {r['precision']} {r['ratio']:.2f}" for r in rows]
            write({"rows": rows, "told": [f"search to plain: {', '.join(told)}"], "missed": missed})
    write({asked.size.large: large_network(asked)})


def step_times(network: str, batch: int, precision: str, asked: argparse.Namespace) -> Record:
    """Milliseconds of each kind of step, peak memory, and how often the host waited in a step of the search."""
    kinds: dict[str, Kind] = {
        "plain": Kind(mode="plain"),
        "plain channels last": Kind(mode="plain_channels_last"),
        "search, undecided": Kind(mode="both", alignment="pad", phase="start"),
        "search, decided": Kind(mode="both", alignment="pad", phase="end"),
        "search, architecture": Kind(mode="both", alignment="pad", phase="architecture"),
    }
    made = {
        name: in_precision(step_of(kind, network, batch, asked.device), precision, asked.device)
        for name, kind in kinds.items()
    }
    if not asked.smoke:
        made["plain, compiled"] = in_precision(compiled_step(network, batch, asked.device), precision, asked.device)
    for step in made.values():
        step(0)
    medians(made, asked.size.repeats, asked.device)  # kernels are chosen for the shapes of each draw
    milliseconds, _ = medians(made, asked.size.repeats, asked.device)
    search = (milliseconds["search, undecided"] + milliseconds["search, architecture"]) / 2
    plain = min(milliseconds["plain"], milliseconds["plain channels last"])
    return {
        "milliseconds": milliseconds,
        "ratio": search / plain,
        "waits": waits(made["search, undecided"], asked.device),
        "peak_mib": {name: peak_mib(step, asked.device) for name, step in made.items()},
    }


def in_precision(step: Callable[[int], None], precision: str, device: str) -> Callable[[int], None]:
    def stepped(seed: int) -> None:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
            step(seed)

    return stepped


def compiled_step(name: str, batch: int, device: str) -> Callable[[int], None]:
    network = transprune.resnet(int(name.removeprefix("resnet"))).to(device=device, memory_format=torch.channels_last)
    images = torch.randn(batch, 3, 32, 32, device=device)
    labels = torch.randint(0, 10, (batch,), device=device)
    compiled = torch.compile(network)
    return plain_step(compiled, images, labels)


def waits(step: Callable[[int], None], device: str) -> int:
    """How often the host waits for the device in one step."""
    if device != "cuda":
        return 0
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            step(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(each.message) for each in seen)


def peak_mib(step: Callable[[int], None], device: str) -> float | None:
    if device != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats()
    step(2)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**20


def large_network(asked: argparse.Namespace) -> Record:
    """Steps of the search, in its own loop, on a network of torchvision: at full size ResNet-50 at 224 pixels."""
    size = asked.size
    network = build_model(size.large, classes=1000, image_channels=3)
    data = noise(4 * size.large_batch, size.side, classes=1000)
    recipe = transprune.get_preset("medium").search
    options = replace(recipe, epochs=1, batch_size=size.large_batch, warm_up_epochs=0, prior="none")
    ends: list[float] = []
    setup = transprune.Setup(device=asked.device, progress=False, on_step=lambda _: ends.append(time.perf_counter()))
    transprune.search(network, data, "macs=0.5", options, setup=setup)
    return {"seconds_between_steps": [later - sooner for sooner, later in itertools.pairwise(ends)]}


def loader(asked: argparse.Namespace, write: Writer) -> None:
    """Images a second that the loader gives, beside those that a step of ResNet-20 takes."""
    size = asked.size
    data, batch = noise(size.images, 32), size.batch
    batches = make_loader(data.train, data, batch_size=batch, train=True, seed=0, device=asked.device)
    for _ in batches:
        break
    seconds: Record = {}
    with timed(asked.device, seconds, "loading"):
        seen = sum(len(labels) for _, labels in batches)
    step = step_of(Kind(mode="plain_channels_last"), f"resnet{size.depth}", batch, asked.device)
    milliseconds, _ = medians({"plain": step}, size.repeats, asked.device)
    gives, takes = seen / seconds["loading"], 1e3 * batch / milliseconds["plain"]
    missed = [] if gives > takes or asked.smoke else [f"the loader gives {gives:,.0f} images/s, the step {takes:,.0f}"]
    told = [f"the loader gives {gives:,.0f} images/s, a plain step of ResNet-{size.depth} takes {takes:,.0f}"]
    write({"loader_images_per_second": gives, "step_images_per_second": takes, "told": told, "missed": missed})


def latency(asked: argparse.Namespace, write: Writer) -> None:
    """The backend `torch` on this device."""
    teacher, example = transprune.resnet(asked.size.depth).eval(), torch.zeros(1, 3, 32, 32)
    space = transprune.inspect(teacher, example)
    half = transprune.shrink(teacher, transprune.uniform_architecture(space, [HALF.limit(space)]), example).eval()
    rows = []
    for batch in (1, asked.size.batch):
        options = LatencyOptions(backend="torch", batch_size=batch, threads=1, repeats=20 if asked.smoke else 100)
        found = measure_latencies({"teacher": teacher, "half": half}, example, options, device=asked.device)
        rows += [{"network": name, **vars(each)} for name, each in found.items()]
        told = [f"{row['network']} × {row['batch_size']} {row['latency_ms']:.2f} ms" for row in rows]
        write({"rows": rows, "told": told})


def cifar(asked: argparse.Namespace, write: Writer) -> None:
    """The main job at full batch sizes: what is lost at half the MACs, and what each part takes."""
    size, recipe = asked.size, transprune.get_preset("medium")
    data = transprune.load_data(asked.data, mean="imagenet", std="imagenet") if asked.data else noise(size.images, 32)
    setup = transprune.Setup(device=asked.device, progress=False)
    seconds: Record = {}
    figures: Record = {}
    teacher = transprune.resnet(size.depth)
    alike = {"warm_up_epochs": 0, "batch_size": size.batch}
    teaching, searching, distilling = (
        replace(part, epochs=epochs, **alike)
        for part, epochs in zip((recipe.teacher, recipe.search, recipe.distill), size.epochs, strict=True)
    )
    if asked.weights:
        teacher.load_state_dict(load_weights(asked.weights, teacher).tensors)
    else:
        with timed(asked.device, seconds, "teacher"):
            teacher = transprune.train(teacher, data, teaching, setup=setup)
    figures["teacher"] = transprune.evaluate(teacher, data, device=asked.device).to_json()
    write({"seconds_by_part": seconds, **figures})
    with timed(asked.device, seconds, "scores"):
        made = transprune.compress(teacher, data, "macs=0.5", samples=size.samples, device=asked.device)
    figures["without training"] = transprune.evaluate(made.student, data, device=asked.device).to_json()
    write({"seconds_by_part": seconds, **figures})
    with timed(asked.device, seconds, "search"):
        found = transprune.search(teacher, data, "macs=0.5", searching, setup=setup)
    write({"seconds_by_part": seconds, "entropy": found.entropy, "architecture": found.architecture.to_json()})
    with timed(asked.device, seconds, "distillation"):
        student = transprune.distill(found.student, teacher, data, distilling, setup=setup)
    figures["student"] = transprune.evaluate(student, data, device=asked.device).to_json()
    told = [f"{name} {each['top1']:.2f} %" for name, each in figures.items()]
    told += [f"{name} {each:.0f} s" for name, each in seconds.items()]
    write({"seconds_by_part": seconds, **figures, "told": told})


def processes(asked: argparse.Namespace, write: Writer) -> None:
    """A search in two processes, which must agree."""
    gpus = torch.cuda.device_count() if asked.device == "cuda" else 2
    if gpus < 2:
        write({"told": [f"left out: it takes two GPUs, and there is {gpus}"]})
        return
    with tempfile.TemporaryDirectory() as place:
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"),
            *("transprune", "search", "resnet20", "--data", "digits", "--budget", "macs=0.5", "--preset", "quick"),
            *("--out", f"{place}/run", "--device", asked.device),
            *("--teacher.epochs=1", "--teacher.warm-up-epochs=0", "--search.epochs=1", "--search.warm-up-epochs=0"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        has_found = Path(place, "run", "architecture.json").exists()
    told = ["two processes searched" if has_found else "two processes found nothing"]
    missed = [] if done.returncode == 0 and has_found else [f"torchrun ended with exit code {done.returncode}"]
    write({"output": done.stdout[-2000:], "error": done.stderr[-2000:], "told": told, "missed": missed})


STAGES: dict[str, Callable[[argparse.Namespace, Writer], None]] = {
    each.__name__: each for each in (tests, run, steps, loader, latency, cifar, processes)
}


def noise(count: int, side: int, classes: int = 10) -> ImageData:
    """Random images, which cost what others do."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
    split = MemorySplit(images=images, labels=torch.arange(count) % 10)  # several of each for both parts of a search
    return ImageData(
        name="noise",
        train=split,
        test=split.subset(range(min(count, 2_000))),
        classes=tuple(map(str, range(classes))),
        image_size=(3, side, side),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        augmentation=transprune.Augmentation(flip=True, pad=4),
    )


@contextmanager
def timed(device: str, seconds: Record, name: str) -> Iterator[None]:
    """Writes down the seconds of the block, once the device has done its work."""
    begun = time.perf_counter()
    yield
    if device == "cuda":
        torch.cuda.synchronize()
    seconds[name] = time.perf_counter() - begun


if __name__ == "__main__":
    main()
