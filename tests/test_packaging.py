"""The wheel and the source distribution hold the library, install, and the library imports nothing heavy by itself."""

import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile

import pytest

import transprune
from documents import ROOT


def build(source, into):
    """The source distribution and the wheel of a source folder."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", into], cwd=source, check=True, capture_output=True
    )
    return [next(into.glob(pattern)) for pattern in ("*.tar.gz", "*.whl")]


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The wheel and the source distribution."""
    pytest.importorskip("hatchling")
    source, wheel = build(ROOT, tmp_path_factory.mktemp("dist"))
    assert source.name == f"transprune-{transprune.__version__}.tar.gz"
    return source, wheel


def names_in(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_every_module_and_template_and_that_it_is_typed(distributions):
    names = names_in(distributions[1])
    package = ROOT / "src" / "transprune"
    wanted = {f"transprune/{file.relative_to(package)}" for file in package.rglob("*.*") if file.suffix != ".pyc"}
    assert {"transprune/py.typed", "transprune/reports/templates/report.html.j2"} <= wanted <= names
    assert {name.split("/")[0] for name in names} == {"transprune", f"transprune-{transprune.__version__}.dist-info"}


def test_the_source_distribution_builds_the_same_wheel(distributions, tmp_path):
    with tarfile.open(distributions[0]) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    _, wheel = build(unpacked, tmp_path / "dist")
    assert names_in(wheel) == names_in(distributions[1])


def test_the_wheel_installs_into_an_empty_environment_and_runs(distributions, tmp_path):
    environment = tmp_path / "environment"
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", distributions[1]]
    subprocess.run(command, check=True, capture_output=True)
    # What transprune needs is taken from the environment of the tests; transprune itself is not, as it is linked there.
    (place,) = environment.glob("lib/python*/site-packages")
    (place / "needs.pth").write_text(sysconfig.get_path("purelib"))
    ask = "import transprune; print(transprune.__file__, transprune.__version__)"
    said = subprocess.run([python, "-Ic", ask], check=True, capture_output=True, text=True).stdout
    assert said.split() == [str(place / "transprune" / "__init__.py"), transprune.__version__]
    help_text = subprocess.run(
        [environment / "bin" / "transprune", "--help"], check=True, capture_output=True, text=True
    )
    assert "usage: transprune" in help_text.stdout


def test_importing_the_package_imports_no_other():
    ask = "import sys; before = set(sys.modules); import transprune; print(*set(sys.modules) - before)"
    said = subprocess.run([sys.executable, "-c", ask], check=True, capture_output=True, text=True).stdout
    packages = {name.split(".")[0] for name in said.split()}
    assert packages - sys.stdlib_module_names == {"transprune"}


def test_training_and_searching_import_nothing_that_only_files_and_terminals_need():
    ask = "import sys, transprune; transprune.search, transprune.distill, transprune.shrink; print(*sys.modules)"
    said = subprocess.run([sys.executable, "-c", ask], check=True, capture_output=True, text=True).stdout
    packages = {name.split(".")[0] for name in said.split()}
    assert not packages & {
        "matplotlib",
        "onnx",
        "onnxruntime",
        "onnxscript",
        "tyro",
        "rich",
        "torchvision",
        "timm",
        "pyarrow",
    }


def test_the_version_is_written_in_one_place():
    configured = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert configured["project"]["dynamic"] == ["version"]
    version = transprune.__version__
    files = [file for file in (ROOT / "src").rglob("*.py") if f'"{version}"' in file.read_text()]
    assert [file.name for file in files] == ["__init__.py"]
