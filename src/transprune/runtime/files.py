"""Files that are whole or not there and can tell, folders for one process at a time, disk errors with a way out."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from transprune.errors import RunFolderError

if sys.platform != "win32":
    import fcntl

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
KEY = "sha256"
"""Under which a file holds the SHA-256 of itself, taken with `BLANK` in the digest's place."""
BLANK = "0" * 64
"""What stands in the digest's place before it is known."""
_PLACE = re.compile(rb'"sha256": ?"(?=.{64}")', re.DOTALL)
_UNSUPPORTED = {errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS}
"""What file systems answer that know no locks on folders."""

log = logging.getLogger("transprune.run")


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


def seal(content: bytes) -> bytes:
    """The content, JSON text or with JSON inside, with the digest under `KEY` in place of `BLANK`."""
    start = _place(content)
    assert start is not None, "a text under the key sha256"
    return content[:start] + _digest(content, start) + content[start + len(BLANK) :]


def is_whole(content: bytes) -> bool | None:
    """Whether the digest is that of the content; None if there is no digest."""
    start = _place(content)
    return None if start is None else content[start : start + len(BLANK)] == _digest(content, start)


def _place(content: bytes) -> int | None:
    """Where the first digest starts."""
    found = _PLACE.search(content)
    return found.end() if found else None


def _digest(content: bytes, start: int) -> bytes:
    view = memoryview(content)
    digest = hashlib.sha256(view[:start])
    digest.update(BLANK.encode())
    digest.update(view[start + len(BLANK) :])
    return digest.hexdigest().encode()


class FolderLock:
    """Holds a folder for this process until `release`; the system lets it go when the process dies, however it does.

    The lock is on the folder itself, so that no file is left behind. The folder is made if missing.

    Raises:
        RunFolderError: Another process, or another run in this one, holds the folder.
    """

    def __init__(self, folder: Path) -> None:
        self._descriptor: int | None = None
        with disk_errors("make the run folder", folder):
            folder.mkdir(parents=True, exist_ok=True)
        if sys.platform == "win32":  # it has no such locks
            return
        with disk_errors("open", folder):
            self._descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.release()
            raise RunFolderError(
                f"cannot use the run folder '{folder}': another process is at work on it; wait for its end or stop it "
                f"(a process that died holds no folder), or choose another folder with --out"
            ) from error
        except OSError as error:
            self.release()
            if error.errno not in _UNSUPPORTED:
                raise
            log.warning("'%s' is on a disk without locks: let no two runs use it at once", folder)
        # A process that loads data would go on holding the folder for a moment after the death of its parent.
        os.register_at_fork(after_in_child=_Forget(self))

    def release(self) -> None:
        """Lets the folder go; nothing happens if it was let go before."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __del__(self) -> None:
        self.release()


class _Forget:
    """Lets a folder go in a new process, if the lock is still there; what is called at a fork is kept for ever."""

    def __init__(self, lock: FolderLock) -> None:
        self._lock = weakref.ref(lock)

    def __call__(self) -> None:
        lock = self._lock()
        if lock is not None:
            lock.release()


def expanded(text: str) -> Path:
    """The path with `~` replaced by the home folder; as it stands where no user has that name."""
    with suppress(ValueError):  # a null byte, which no path has either: nothing will be found there
        text = os.path.expanduser(text)
    return Path(text)
