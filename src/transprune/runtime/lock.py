"""One process at a time on a folder."""

from __future__ import annotations

import errno
import logging
import os
import sys
import weakref
from pathlib import Path

from transprune.errors import RunFolderError
from transprune.runtime.files import disk_errors

if sys.platform != "win32":
    import fcntl

log = logging.getLogger("transprune.run")

_UNSUPPORTED = {errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS}
"""What file systems answer that know no locks on folders."""


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
