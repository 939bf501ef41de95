"""Files that one process holds alone: a lock of the operating system, which ends with the process however that ends."""

from __future__ import annotations

import errno
import functools
import logging
import os
import sys
from io import FileIO
from pathlib import Path

log = logging.getLogger(__name__)

if sys.platform == "win32":
    import msvcrt

    FAR = 1 << 30
    """A byte behind the content, which others can then still read."""

    def _lock(file: FileIO) -> None:
        file.seek(FAR)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(file: FileIO) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


_held: set[FileIO] = set()


def hold(path: Path) -> FileIO | None:
    """Hold the file ``path``, made if it is not there, until `release`; None if somebody else holds it.

    Raises:
        OSError: it cannot be written.
    """
    while True:
        file = FileIO(path, "a+b")
        try:
            _lock(file)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
                file.close()
                return None
            _mention_missing_locks(path.parent, str(error))
        if _is_at(file, path):
            _held.add(file)
            return file
        # Whoever held it has deleted it since it was opened.
        file.close()


def release(file: FileIO, path: Path, *, delete: bool) -> None:
    """Let go of a file from `hold`, once; with ``delete`` it is deleted if it is still the one at ``path``."""
    if file not in _held:
        return
    _held.remove(file)
    try:
        # While it is held, so that whoever waits for it sees that it is gone. Windows cannot delete an open file.
        if delete and sys.platform != "win32" and _is_at(file, path):
            path.unlink()
    finally:
        file.close()


def _is_at(file: FileIO, path: Path) -> bool:
    """Whether an open file is still the one at ``path``."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def write_all(file: FileIO, content: bytes) -> None:
    """Write without a buffer: what fails is not written later, when the file is closed."""
    left = memoryview(content)
    while left:
        left = left[file.write(left) :]


@functools.cache
def _mention_missing_locks(folder: Path, why: str) -> None:
    log.warning("%s has no locks (%s): see to it that only one run at a time works on the results there.", folder, why)


def _forget() -> None:
    """In a forked process, which inherits open files and would hold them after the death of its parent."""
    for file in _held:
        file.close()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
