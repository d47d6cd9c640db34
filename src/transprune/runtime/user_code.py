"""Functions of the user, named on the command line: the only code outside transprune that a name can run."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from transprune.errors import TranspruneError, expected_one_of
from transprune.runtime.files import expanded

_OWN = str(Path(__file__).parent.parent)
"""The folder of transprune's own code."""
FORM = "expected FILE.py:FUNCTION or package.module:FUNCTION"


@dataclass(frozen=True, kw_only=True)
class UserFunction:
    """A function of the user in a file or module, by name."""

    name: str
    """`FILE.py:FUNCTION` or `package.module:FUNCTION`; the function may be a class."""
    purpose: str
    """What it is for, such as "build the model"; used in messages."""
    error: type[TranspruneError]
    """The error to raise if it is missing or fails."""
    fits: Callable[[Any], bool] = callable
    """Whether an object can serve as the function."""
    near: tuple[str, ...] = ()
    """Names that are not modules but might be meant, for suggestions."""

    @contextmanager
    def imported(self) -> Iterator[Callable[..., Any]]:
        """Imports the function; inside the block, modules in its folder (or the current one) can be imported too.

        Raises:
            TranspruneError: The file, module or function is missing, or its code fails.
        """
        place, _, function = self.name.rpartition(":")
        is_file = place.endswith(".py")
        if not function.isidentifier() or not (is_file or all(part.isidentifier() for part in place.split("."))):
            raise self.failed(FORM)
        file = expanded(place)
        if is_file and not os.path.isfile(file):
            raise self.failed(f"there is no file '{file}' in '{Path.cwd()}'; {FORM}")
        with _importable(file.parent if is_file else Path()):
            module = self._import_file(file) if is_file else self._import_module(place)
            yield self._found(module, function)

    @contextmanager
    def reported(self, action: str) -> Iterator[None]:
        """Turns an error of the user's code into one that names its file and line.

        Args:
            action: What the block does.

        Raises:
            TranspruneError: The block raised something.
        """
        try:
            yield
        except (Exception, SystemExit) as error:
            place = _place(error)
            at = f" at {place}" if place else ""
            raise self.failed(f"{action} failed{at}: {type(error).__name__}: {error}") from error

    def failed(self, what: str) -> TranspruneError:
        """The error to raise."""
        return self.error(f"cannot {self.purpose} {self.name!r}: {what}")

    def _import_file(self, file: Path) -> ModuleType:
        own_name = f"transprune_user_{file.stem}"
        spec = importlib.util.spec_from_file_location(own_name, file)
        assert spec is not None  # there is a loader for .py files
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[own_name] = module  # dataclasses look up their module there
        with self.reported(f"importing '{file}'"):
            spec.loader.exec_module(module)
        return module

    def _import_module(self, place: str) -> ModuleType:
        try:
            with self.reported(f"importing {place!r}"):
                return importlib.import_module(place)
        except self.error as error:
            cause = error.__cause__
            missing = cause.name if isinstance(cause, ModuleNotFoundError) else None
            if missing is None or not f"{place}.".startswith(f"{missing}."):
                raise  # the module exists, and importing it fails
            near = difflib.get_close_matches(place, self.near, n=1)
            hint = f"did you mean '{near[0]}:{self.name.rpartition(':')[2]}'?" if near else FORM
            where = f"neither installed nor in '{Path.cwd()}'"
            raise self.failed(f"there is no module {missing!r}, {where}; {hint}") from cause

    def _found(self, module: ModuleType, function: str) -> Callable[..., Any]:
        found: Callable[..., Any] | None = getattr(module, function, None)
        if found is None or not self.fits(found):
            own = [
                key
                for key, value in vars(module).items()
                if self.fits(value) and f"{getattr(value, '__module__', None)}.".startswith(f"{module.__name__}.")
            ]
            hint = expected_one_of(function, own) if own else "it defines none"
            raise self.failed(f"there is no function {function!r} in '{module.__file__}'; {hint}")
        return found


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Puts a folder first on `sys.path` inside the block, as `python FILE.py` does."""
    entry = str(folder.resolve())
    sys.path.insert(0, entry)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if entry in sys.path:  # the user's code may have changed the path
            sys.path.remove(entry)


def _place(error: BaseException) -> str | None:
    """File and line of the innermost frame in the user's code, or else in an installed package; None if neither ran."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = _foreign(error)
    return own_place(error) or (f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None)


def own_place(error: BaseException) -> str | None:
    """File and line of the innermost frame that is neither transprune's nor an installed package's; None if none is."""
    own = [frame for frame in _foreign(error) if not _is_installed(frame.filename)]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else None


def _foreign(error: BaseException) -> list[traceback.FrameSummary]:
    return [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(_OWN)]


def _is_installed(file: str) -> bool:
    paths = sysconfig.get_paths()
    return file.startswith(("<", *(paths[key] for key in ("stdlib", "purelib", "platlib"))))
