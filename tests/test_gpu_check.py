"""The script that proves the library on a GPU, at the size and on the device that any machine has."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu" / "check.py"


def check(out, *options):
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--smoke", "--out", str(out), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.long
def test_every_stage_of_the_check_runs_on_a_cpu_and_leaves_its_figures(tmp_path):
    done = check(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    stages = ("tests", "run", "steps", "loader", "latency", "cifar", "processes")
    for name in stages:
        record = json.loads((tmp_path / f"{name}.json").read_text())
        assert record["is_complete"], name
        assert not record["problems"], name
        assert record["told"], name
        assert record["environment"]["torch"], name
    assert all(f"| {name} |" in (tmp_path / "summary.md").read_text() for name in stages)


def test_a_stage_that_fails_is_said_and_the_exit_code_tells(tmp_path):
    done = check(tmp_path, "--stages", "cifar", "--data", "parquet:nowhere")
    assert done.returncode == 1
    record = json.loads((tmp_path / "cifar.json").read_text())
    assert record["problems"] == ["ended with exit code 1"]
    assert "ended with exit code 1" in (tmp_path / "summary.md").read_text()
    assert "nowhere" in done.stderr, "the reason is printed"
