"""One run at a time on the same results: a lock file that is held, with its owner written in it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from pydantic import ValidationError

from channelwise.errors import ResultsFileError
from channelwise.io.atomic import writing
from channelwise.io.held import hold, release, write_all
from channelwise.io.process import Process, this_process

log = logging.getLogger(__name__)


@contextmanager
def locked(path: str | os.PathLike[str]) -> Iterator[None]:
    """Hold ``path`` + ".lock" while the block runs.

    What counts is the operating system's lock of that file; the text in it only says who has it. A process that ends,
    however it ends, has the lock no more. Locks may not be seen on other machines, so a file that another machine has
    left is respected.

    Raises:
        ResultsFileError: somebody else holds it, or it cannot be written.
    """
    lock = Path(f"{os.fspath(path)}.lock")
    with writing(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = hold(lock)
        if file is None:
            raise _in_use(lock, _owner(lock))
        try:
            _sign(file, lock)
        except BaseException as error:
            # One that could not be signed is nobody's.
            release(file, lock, delete=isinstance(error, OSError))
            raise
    try:
        yield
    finally:
        with writing(lock):
            release(file, lock, delete=True)


def _sign(file: FileIO, lock: Path) -> None:
    """Write this process into the lock file; ResultsFileError if one on another machine may still have it."""
    me, last = this_process(), _owner(lock)
    if last is not None:
        if not me.may_see_locks_of(last):
            raise _in_use(lock, last)
        log.warning("Took over %s from a process that has ended.", lock)
    file.truncate(0)
    write_all(file, me.model_dump_json().encode())


def _owner(lock: Path) -> Process | None:
    """Who has written the lock file; None if nobody has, or not to the end."""
    try:
        return Process.model_validate_json(lock.read_bytes())
    except (ValidationError, FileNotFoundError):
        return None


def _in_use(lock: Path, owner: Process | None) -> ResultsFileError:
    who = str(owner or "another process")
    return ResultsFileError(
        f"{who[0].upper()}{who[1:]} is working on the same results ({lock} is held). Wait for it or use another "
        f"folder; if it no longer runs, delete {lock.name}."
    )
