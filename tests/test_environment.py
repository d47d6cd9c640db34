"""The environment names what results depend on, and nobody."""

import getpass
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import transprune
from transprune.runtime.environment import KERNELS_VARIABLE, environment


def test_the_environment_names_versions_and_hardware():
    found = environment()
    assert found["torch"] == torch.__version__
    assert found["numpy"] == np.__version__
    assert found["transprune"] == transprune.__version__
    assert found["python"] == platform.python_version()
    assert found["threads"] == torch.get_num_threads()
    assert 1 <= found["cores"] <= os.cpu_count()
    assert found["memory_gib"] is None or found["memory_gib"] > 0
    assert found["cpu"]
    assert found["platform"].startswith(platform.system())


def test_the_environment_is_valid_json():
    assert json.loads(json.dumps(environment(), allow_nan=False)) == environment()


def test_the_environment_names_neither_the_host_nor_the_user_nor_paths(monkeypatch):
    monkeypatch.setattr(platform, "release", lambda: "6.1.0-built-by-alice")
    values = [str(value) for value in environment().values()]
    assert platform.node() not in values
    for private in ("alice", str(Path.home()), str(Path.cwd()), os.sep + getpass.getuser()):
        assert not any(private in value for value in values if len(private) > 1)
    assert not any(value.startswith(("/", "~")) for value in values)


def test_a_package_that_is_not_installed_is_none(monkeypatch):
    monkeypatch.setattr("importlib.metadata.Distribution.from_name", _not_found)
    found = environment()
    assert found["onnxruntime"] is None
    assert found["torch"] == torch.__version__


def _not_found(name):
    from importlib.metadata import PackageNotFoundError

    raise PackageNotFoundError(name)


def test_no_cuda_device_is_said_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = environment()
    assert (found["cuda_device"], found["cuda_memory_gib"], found["cuda_version"]) == (None, None, None)


def test_a_cuda_device_is_named(monkeypatch):
    class Properties:
        name = "Some GPU"
        total_memory = 80 * 2**30

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    found = environment()
    assert (found["cuda_device"], found["cuda_memory_gib"], found["cuda_version"]) == ("Some GPU", 80.0, "13.2")


def test_importing_the_runtime_imports_no_heavy_libraries():
    program = "import sys, transprune.runtime; print(*sys.modules)"
    modules = subprocess.check_output([sys.executable, "-c", program], text=True).split()
    assert "transprune.runtime" in modules
    assert not {"rich", "onnxruntime", "torchvision", "sklearn", "matplotlib"} & set(modules)


CONVOLVES_TWO_WIDTHS_TWICE = """
import torch
from transprune.runtime import environment, keep_kernels

environment.KERNELS = {kernels}
keep_kernels()
for _ in range(2):
    for width in (3, 5):
        torch.nn.functional.conv2d(torch.ones(16, 16, 32, 32), torch.ones(width, 16, 3, 3))
"""


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch was built without oneDNN")
@pytest.mark.parametrize(("kernels", "given", "expected"), [(1, None, 4), (100, None, 2), (1, "100", 2)])
def test_onednn_keeps_as_many_kernels_as_it_was_told_by_us_or_by_the_environment(kernels, given, expected):
    surroundings = {**os.environ, "ONEDNN_VERBOSE": "profile_create"}
    surroundings.pop(KERNELS_VARIABLE, None)
    if given is not None:
        surroundings[KERNELS_VARIABLE] = given
    script = CONVOLVES_TWO_WIDTHS_TWICE.format(kernels=kernels)
    done = subprocess.run([sys.executable, "-c", script], env=surroundings, capture_output=True, text=True, check=True)
    compiled = [line for line in done.stdout.splitlines() if "cache_miss" in line and ",convolution," in line]
    assert len(compiled) == expected
