"""The command line in several processes, as `torchrun` starts them."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

import torture
from transprune.cli import main
from transprune.runtime import read_journal

SMALL = [
    *("net.py:build", *torture.OPTIONS, "--out", "run"),
    *(f"--{phase}.{name}" for phase in ("teacher", "search", "distill") for name in ("epochs=1", "warm-up-epochs=0")),
]


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(place, arguments, *torchrun):
    """An agent of `torchrun` with the command; its output goes to a file."""
    (place / "net.py").write_text(torture.NETWORK)
    here = str(Path(torture.__file__).parent)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([*sys.path, here])}
    command = [sys.executable, "-m", "torch.distributed.run", *torchrun, "-m", "transprune", *arguments]
    with (place / "output.txt").open("ab") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, cwd=place, env=environment)


def run_on_two_nodes(place, arguments):
    """The command on two nodes that are this machine; their exit codes."""
    port = str(free_port())
    common = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", port]
    places = [place / f"node{rank}" for rank in range(2)]
    for each in places:
        each.mkdir(exist_ok=True)
    agents = [start(each, arguments, *common, "--node-rank", str(rank)) for rank, each in enumerate(places)]
    return places, [agent.wait(500) for agent in agents]


def test_two_nodes_that_share_no_disk_complete_a_run_that_only_the_first_writes(tmp_path):
    (first, second), codes = run_on_two_nodes(tmp_path, ["run", *SMALL])
    text = (first / "output.txt").read_text()
    assert codes == [0, 0], text + (second / "output.txt").read_text()
    for name in ("architecture.json", "student.safetensors", "result.json", "student.onnx", "report.html"):
        assert (first / "run" / name).exists(), name
    assert not (second / "run").exists()
    decisions = [entry for entry in read_journal(first / "run" / "journal.jsonl") if entry["event"] == "decision"]
    assert decisions[0]["processes"] == 2
    assert "student" in text, "the first one shows the results"


def children(pid):
    """The processes that a process has started."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(each) for each in found]


def ranks(agent):
    """The processes of an agent by their rank."""
    found = {}
    for pid in children(agent.pid):
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        found |= {int(each.partition(b"=")[2]): pid for each in variables if each.startswith(b"RANK=")}
    return found


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in /proc")
def test_a_process_that_is_killed_ends_the_job_with_a_message_and_the_run_goes_on(tmp_path, monkeypatch):
    arguments = ["search", *SMALL, "--checkpoint-steps", "1"]
    agent = start(tmp_path, arguments, "--nproc-per-node", "2", "--master-port", str(free_port()))
    checkpoint = tmp_path / "run" / "checkpoint.previous.safetensors"
    deadline = time.monotonic() + 200
    while not checkpoint.exists() and time.monotonic() < deadline and agent.poll() is None:
        time.sleep(0.05)
    os.kill(ranks(agent)[1], signal.SIGKILL)
    assert agent.wait(200) != 0
    text = (tmp_path / "output.txt").read_text()
    if "another process of the job ended or cannot be reached" in text:
        assert "it goes on from the last checkpoint" in text
    else:  # torchrun noticed first and ended the other one
        assert "SIGTERM" in text
    monkeypatch.chdir(tmp_path)
    main(arguments)  # one process takes up what two had begun
    entries = read_journal(tmp_path / "run" / "journal.jsonl")
    assert any(entry.get("resumed") for entry in entries)
    assert load_file(tmp_path / "run" / "supernet.safetensors")
