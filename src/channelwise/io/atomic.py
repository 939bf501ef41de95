"""Files written as a whole: a reader, and a crash at any moment, sees either the old content or the new one."""

from __future__ import annotations

import errno
import glob
import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from channelwise.errors import ResultsFileError
from channelwise.io.held import hold, release, write_all


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn every failure to write ``path`` (no permission, disk full, not a folder) into a ResultsFileError."""
    try:
        yield
    except OSError as error:
        raise ResultsFileError(f"Cannot write {path}: {error.strerror or error}.") from error


def write(path: str | os.PathLike[str], content: bytes) -> None:
    """Write ``content`` to ``path``, which is on the disk when this returns; its folder is made if it is not there."""
    with replacing(Path(path)) as file:
        write_all(file, content)


@contextmanager
def replacing(path: Path) -> Iterator[FileIO]:
    """An empty file beside ``path``, to write to; if the block ends well, it is forced to the disk and put there."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    with writing(path):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise OSError(errno.EINVAL, "it is a device, a pipe or a socket, not a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        _delete_leftovers(path)
        # Held, which tells it from what a killed process has left.
        file = hold(temporary)
        assert file is not None
        try:
            yield file
            os.fsync(file.fileno())
            if sys.platform == "win32":  # where an open file cannot be renamed
                release(file, temporary, delete=False)
            os.replace(temporary, path)
            release(file, path, delete=False)
        except BaseException:
            release(file, temporary, delete=True)
            raise
        _sync_folder(path.parent)


def _delete_leftovers(path: Path) -> None:
    """Delete the temporary files of processes that were killed while they wrote ``path``."""
    for name in glob.glob(f".{glob.escape(path.name)}.*.tmp", root_dir=path.parent):
        with suppress(OSError):
            file = hold(path.with_name(name))
            if file is not None:
                release(file, path.with_name(name), delete=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` durable, where folders can be synced at all."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
