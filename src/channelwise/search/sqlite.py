"""The SQLite file of a network's searches: opened so that kills lose nothing, checked, copied and set aside."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from channelwise.errors import ResultsFileError
from channelwise.io.atomic import replacing, writing
from channelwise.io.reading import exists
from channelwise.search.failures import damaged, storage_errors

BUSY_SECONDS = 60
WAL = ("-wal", "-shm")


class _Connection(sqlite3.Connection):
    """With a write-ahead log a commit need not wait for the disk, a kill loses none, and readers never block."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        mode = self.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        # Some file systems have no such log; there only waiting for the disk is safe.
        self.execute(f"PRAGMA synchronous={'NORMAL' if mode == 'wal' else 'FULL'}")


class _Reader(_Connection):
    """Refuses to write."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.execute("PRAGMA query_only=ON")


def engine_options(path: Path, *, query: bool, read_only: bool) -> dict[str, Any]:
    """Arguments of SQLAlchemy's ``create_engine``; ``query``: the URL says more than the path."""
    settings: dict[str, Any] = {"timeout": BUSY_SECONDS, "factory": _Reader if read_only else _Connection}
    if query:
        return {"connect_args": settings}
    # Older versions of SQLAlchemy lose a path with a question mark on its way through a URL.
    return {"creator": partial(sqlite3.connect, str(path), check_same_thread=False, **settings)}


def check_is_sqlite(path: Path) -> None:
    """Raise ResultsFileError for a file that is no SQLite database or is damaged."""
    if not exists(path):
        target = os.path.realpath(path)
        if path.is_symlink() and (os.path.islink(target) or not os.path.isdir(os.path.dirname(target))):
            raise damaged(path, f"it is a link to {os.readlink(path)}, where nothing can be")
        return
    if not path.is_file():
        raise ResultsFileError(f"{path} is no file but a folder or a device. Move it away, or use another folder.")
    if path.stat().st_size == 0:
        return
    with storage_errors(str(path), path), closing(sqlite3.connect(path, timeout=BUSY_SECONDS)) as connection:
        found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        lost = connection.execute("PRAGMA foreign_key_check").fetchone()
    if found != "ok" or lost is not None:
        raise damaged(path, found.splitlines()[-1] if found != "ok" else f"rows of {lost[0]} belong to nothing")


def in_read_only_folder(path: Path) -> bool:
    """Whether there is such a file and nothing can be written beside it, which SQLite needs even to read."""
    return exists(path) and not os.access(path.parent, os.W_OK)


@contextmanager
def copied(path: Path) -> Iterator[Path]:
    """A copy of the file, with its log, that goes with the block."""
    with tempfile.TemporaryDirectory(prefix="channelwise-") as folder:
        copy = Path(folder) / "search"
        with storage_errors(str(path), path):
            shutil.copyfile(path, copy)
            with suppress(FileNotFoundError):
                shutil.copyfile(f"{path}-wal", f"{copy}-wal")
        yield copy


def set_aside(path: Path) -> None:
    """Move the file, and what belongs to it, out of the way as .bak; an older .bak is replaced."""
    # A damaged file is moved as it is.
    with suppress(sqlite3.Error), closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for ending in (*WAL, ""):
        source, aside = Path(f"{path}{ending}"), Path(f"{path}.bak{ending}")
        with writing(aside):
            aside.unlink(missing_ok=True)
            if os.path.lexists(source):
                os.replace(source, aside)


def back_up(path: Path) -> None:
    """Keep a copy of the file as .bak; an older one is replaced once the copy is complete."""
    with (
        replacing(path.with_name(path.name + ".bak")) as file,
        storage_errors(str(path), path),
        closing(sqlite3.connect(path)) as source,
        closing(sqlite3.connect(file.name)) as copy,
    ):
        source.backup(copy)
