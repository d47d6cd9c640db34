"""Networks that a function of the user builds. This is the one place where transprune runs code of the user."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from transprune.errors import ModelError, expected_one_of

FORM = "expected FILE.py:FUNCTION or package.module:FUNCTION"


def build_user_model(name: str, *, classes: int, image_channels: int) -> nn.Module:
    """Imports a file or a module and calls a function of it, which builds the network.

    The folder of the file, or for a module the current directory, can be imported from meanwhile.

    Args:
        name: `FILE.py:FUNCTION` or `package.module:FUNCTION`; the function may be a class.
        classes: Passed as `classes` or `num_classes`, if the function has a parameter of that name.
        image_channels: Passed as `image_channels` or `in_chans`, if the function has a parameter of that name.

    Raises:
        ModelError: The file, module or function is missing; its code fails; or what it returns is no module.
    """
    place, _, function = name.rpartition(":")
    is_file = place.endswith(".py")
    if not function.isidentifier() or not (is_file or all(part.isidentifier() for part in place.split("."))):
        raise ModelError(f"cannot build the model {name!r}: {FORM}")
    file = Path(place).expanduser()
    folder = file.parent if is_file else Path()
    with _importable(folder):
        module = _import_file(name, file) if is_file else _import_module(name, place)
        builder = _builder(name, module, function)
        with _reported(name, "calling it"):
            model = builder(**_arguments(builder, classes, image_channels))
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"cannot build the model {name!r}: it returned {type(model).__name__}; expected a torch.nn.Module"
        )
    return model


def _import_file(name: str, file: Path) -> ModuleType:
    if not file.is_file():
        raise ModelError(f"cannot build the model {name!r}: there is no file '{file}' in '{Path.cwd()}'; {FORM}")
    own_name = f"transprune_user_{file.stem}"
    spec = importlib.util.spec_from_file_location(own_name, file)
    assert spec is not None  # the file ends in .py, for which there is a loader
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[own_name] = module  # dataclasses look their module up there
    with _reported(name, f"importing '{file}'"):
        spec.loader.exec_module(module)
    return module


def _import_module(name: str, place: str) -> ModuleType:
    try:
        with _reported(name, f"importing {place!r}"):
            return importlib.import_module(place)
    except ModelError as error:
        cause = error.__cause__
        missing = cause.name if isinstance(cause, ModuleNotFoundError) else None
        if missing is None or not f"{place}.".startswith(f"{missing}."):
            raise  # the module is there, and fails
        near = difflib.get_close_matches(place, ("torchvision", "timm"), n=1)
        hint = f"did you mean '{near[0]}:{name.rpartition(':')[2]}'?" if near else FORM
        raise ModelError(
            f"cannot build the model {name!r}: there is no module {missing!r}, neither installed nor in "
            f"'{Path.cwd()}'; {hint}"
        ) from cause


def _builder(name: str, module: ModuleType, function: str) -> Callable[..., Any]:
    builder: Callable[..., Any] | None = getattr(module, function, None)
    if builder is None or not _can_build(builder):
        own = [
            key
            for key, value in vars(module).items()
            if _can_build(value) and getattr(value, "__module__", None) == module.__name__
        ]
        hint = expected_one_of(function, own) if own else "it defines none"
        raise ModelError(
            f"cannot build the model {name!r}: there is no function {function!r} in '{module.__file__}'; {hint}"
        )
    return builder


def _can_build(value: Any) -> bool:
    return callable(value) and not isinstance(value, nn.Module)


def _arguments(builder: Callable[..., Any], classes: int, image_channels: int) -> dict[str, int]:
    """Those of our figures that the function has a parameter for."""
    try:
        parameters = inspect.signature(builder).parameters
    except ValueError:  # some callables that are written in C have no signature
        return {}
    figures = {"classes": classes, "num_classes": classes, "image_channels": image_channels, "in_chans": image_channels}
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {key: value for key, value in figures.items() if key in parameters and parameters[key].kind in by_name}


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Puts a folder first on the path of imports, as `python FILE.py` does, for the time of the block."""
    entry = str(folder.resolve())
    sys.path.insert(0, entry)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if entry in sys.path:  # the user's code may have changed the path
            sys.path.remove(entry)


@contextmanager
def _reported(name: str, action: str) -> Iterator[None]:
    """Turns an error of the user's code into one that names its file and line.

    Raises:
        ModelError: The block raised something.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        place = _place(error)
        raise ModelError(
            f"cannot build the model {name!r}: {action} failed{f' at {place}' if place else ''}: "
            f"{type(error).__name__}: {error}"
        ) from error


def _place(error: BaseException) -> str | None:
    """File and line where the user's code failed: the innermost frame outside of installed packages, if there is one.

    None where no code of the user was reached.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    own = [frame for frame in frames if not _is_installed(frame.filename)]
    return f"{(own or frames)[-1].filename}:{(own or frames)[-1].lineno}" if frames else None


def _is_installed(file: str) -> bool:
    paths = sysconfig.get_paths()
    return file.startswith(("<", *(paths[key] for key in ("stdlib", "purelib", "platlib"))))
