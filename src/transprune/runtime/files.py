"""Atomic writes, checksums inside files, locks on folders, and disk errors that say what to do."""

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
"""The key under which a file stores its own SHA-256, computed with `BLANK` in its place."""
BLANK = "0" * 64
"""The placeholder of the digest while it is computed."""
_PLACE = re.compile(rb'"sha256": ?"(?=.{64}")', re.DOTALL)
_UNSUPPORTED = {errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS}
"""Errors of file systems that cannot lock folders."""

log = logging.getLogger("transprune.run")


@contextmanager
def disk_errors(action: str, path: StrPath) -> Iterator[None]:
    """Turns an error of the operating system into one that names the file, the reason and what to do.

    Args:
        action: What the block does to the file, such as "write".
        path: The file or folder to name.

    Raises:
        RunFolderError: The block raised an `OSError`, or the path has a null byte.
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
    """Writes a file so that readers find either the old or the new content, even after a power cut.

    Args:
        path: The file.
        content: Its new content.
        keep: Another name under which to keep the old content.

    Raises:
        RunFolderError: The file cannot be written, such as on a full disk or in a read-only folder.
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
    """Temporary files of a file, or of all files, that a killed process left behind."""
    return sorted(folder.glob(f".{name}.*.tmp"))


def _sync_folder(folder: Path) -> None:
    """Makes a rename durable, which is a change of the folder."""
    if os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def sync(descriptor: int) -> None:
    """Flushes a file to the disk; does nothing on network disks and devices that cannot."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise


def seal(content: bytes) -> bytes:
    """Replaces `BLANK` under `KEY` with the digest of the content, which is JSON or contains JSON."""
    start = _place(content)
    assert start is not None, "a text under the key sha256"
    return content[:start] + _digest(content, start) + content[start + len(BLANK) :]


def is_whole(content: bytes) -> bool | None:
    """Whether the digest matches the content; None if there is no digest."""
    start = _place(content)
    return None if start is None else content[start : start + len(BLANK)] == _digest(content, start)


def _place(content: bytes) -> int | None:
    """The position of the digest."""
    found = _PLACE.search(content)
    return found.end() if found else None


def _digest(content: bytes, start: int) -> bytes:
    view = memoryview(content)
    digest = hashlib.sha256(view[:start])
    digest.update(BLANK.encode())
    digest.update(view[start + len(BLANK) :])
    return digest.hexdigest().encode()


class FolderLock:
    """Locks a folder for this process until `release`, or until the process dies in any way.

    The lock is on the folder itself, so that no file is left behind. The folder is created if missing.

    Raises:
        RunFolderError: Another process, or another run in this process, has locked the folder.
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
        # A forked data worker inherits the lock and would keep it for a moment after the death of its parent.
        os.register_at_fork(after_in_child=_Forget(self))

    def release(self) -> None:
        """Unlocks the folder, if it is still locked."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __del__(self) -> None:
        self.release()


class _Forget:
    """Releases a lock in a forked process. Fork handlers live forever, so it must not keep the lock alive."""

    def __init__(self, lock: FolderLock) -> None:
        self._lock = weakref.ref(lock)

    def __call__(self) -> None:
        lock = self._lock()
        if lock is not None:
            lock.release()


def expanded(text: str) -> Path:
    """The path with `~` replaced by the home folder; unchanged if there is no such user."""
    with suppress(ValueError):  # a null byte: the path is invalid, and opening it will say so
        text = os.path.expanduser(text)
    return Path(text)
