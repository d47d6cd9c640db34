"""Files written whole or not at all, and disk errors that say what to do."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from transprune.errors import RunFolderError

StrPath = str | os.PathLike[str]

_ELSEWHERE = "(with --out where a run begins; for a later step copy the run there)"
_FULL = f"free some space on that disk, and the same command goes on; or choose a folder on another one {_ELSEWHERE}"
_FORBIDDEN = f"give yourself the permission to that folder or choose another one {_ELSEWHERE}"
_MISSING = "check the path, and whether the step that makes it was run"
_ADVICE = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: _FULL,
    errno.EACCES: _FORBIDDEN,
    errno.EPERM: _FORBIDDEN,
    errno.EROFS: _FORBIDDEN,
    errno.ENOENT: _MISSING,
    errno.ENOTDIR: "a part of that path is a file; choose another folder with --out",
    errno.EEXIST: "a file has that name; choose another folder with --out",
}
_OTHER = f"check that disk or choose a folder on another one {_ELSEWHERE}"


@contextmanager
def disk_errors(action: str, path: StrPath) -> Iterator[None]:
    """Turns an error of the operating system into one that names the file, the reason and a way out.

    Args:
        action: What is being done to the file, such as "write".
        path: The file or folder that the error message names.

    Raises:
        RunFolderError: The block raised an `OSError`, or stumbled over a null byte.
    """
    try:
        yield
    except OSError as error:
        raise RunFolderError(
            f"cannot {action} '{os.fspath(path)}': {error.strerror or error}; {_ADVICE.get(error.errno or 0, _OTHER)}"
        ) from error
    except ValueError as error:
        if "\0" not in os.fspath(path):
            raise
        raise RunFolderError(f"cannot {action} {os.fspath(path)!r}: no name has a null byte; choose another") from error


def write_atomically(path: Path, content: bytes, *, keep: Path | None = None) -> None:
    """Writes a file so that readers, also after a power cut, find the old content or the new, never a part.

    Args:
        path: The file.
        content: All of it.
        keep: A second name, which the old content gets once the new one is whole on the disk.

    Raises:
        RunFolderError: The file cannot be written: the disk is full, the folder is missing or read-only.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors("write", path):
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if keep is not None and path.exists():
                path.replace(keep)
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def leftovers(folder: Path, name: str = "*") -> list[Path]:
    """Temporary files of `name` (of any, without one) that a killed process could not remove."""
    return sorted(folder.glob(f".{name}.*.tmp"))


def _sync_folder(folder: Path) -> None:
    """Makes a rename durable: it is the folder that holds the new name."""
    if os.name == "nt":  # a folder cannot be opened as a file there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def sync(descriptor: int) -> None:
    """Waits until what was written is on the disk; some network disks and devices cannot do it."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise
