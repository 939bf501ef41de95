"""Where searches are kept: Optuna's storage in memory, in an SQLite file that survives kills, or in any database."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import distribution_to_json
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from optuna.storages._rdb.models import TrialParamModel
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from channelwise.errors import InvalidArgumentError, ResultsFileError
from channelwise.io.atomic import writing
from channelwise.io.journal import SYNC_SECONDS
from channelwise.io.lock import locked
from channelwise.search.records import UnusableFileError
from channelwise.search.sampler import quiet_optuna

log = logging.getLogger(__name__)

BUSY_SECONDS = 60


class Storage:
    """One place where searches are kept.

    ``path``: the SQLite file, None for memory and databases. ``shared``: other processes may add to it at any time.
    """

    def __init__(self, where: str, storage: BaseStorage, path: Path | None, shared: bool) -> None:
        self.where = where
        self.optuna = storage
        self.path = path
        self.shared = shared
        self._synced = 0.0

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn what goes wrong with the storage into a ResultsFileError that names it; Optuna itself stays silent."""
        with quiet_optuna(), _errors(self.where, self.path):
            yield

    def sync(self) -> None:
        """Force what was committed to the disk, once a second: the rest is with the operating system already."""
        if self.path is None or time.monotonic() - self._synced < SYNC_SECONDS:
            return
        for name in (f"{self.path}-wal", str(self.path)):
            with suppress(FileNotFoundError), open(name, "rb") as file:
                os.fsync(file.fileno())
        self._synced = time.monotonic()


@contextmanager
def opened(
    place: str | os.PathLike[str] | BaseStorage | None,
    *,
    lock: bool,
    forced: bool = False,
    check: Callable[[Storage], None] | None = None,
) -> Iterator[Storage]:
    """The storage at ``place``: None (memory), the path of an SQLite file, a database URL, or an Optuna storage.

    With ``lock`` an SQLite file is held: no other process can work on it, though it may be looked at. Without, the file
    must exist. ``check`` may raise UnusableFileError for what an SQLite file holds; ``forced`` sets aside a file that
    cannot be used.

    Raises:
        ResultsFileError: damaged, of an incompatible version of Optuna, held by another process, or out of reach.
        InvalidArgumentError: not a URL, or its driver is not installed.
    """
    if place is None:
        yield Storage("memory", InMemoryStorage(), None, shared=False)
        return
    if isinstance(place, BaseStorage):
        yield Storage(type(place).__name__, place, None, shared=not isinstance(place, InMemoryStorage))
        return
    url, path = _location(place)
    if path is None:
        with _connected(url, None) as storage:
            yield storage
        return
    if not lock and not path.exists():
        raise ResultsFileError(f"There is no file {path}. Call search() first.")
    with locked(path) if lock else nullcontext():
        if forced:
            _set_aside_unusable(url, path, check)
        with _connected(url, path) as storage:
            if check is not None:
                check(storage)
            yield storage


def _set_aside_unusable(url: URL, path: Path, check: Callable[[Storage], None] | None) -> None:
    try:
        with _connected(url, path) as storage:
            if check is not None:
                check(storage)
    except UnusableFileError as error:
        log.warning("%s The old file is now %s.bak.", error, path.name)
        set_aside(path)


def set_aside(path: Path) -> None:
    """Move an SQLite file, and what belongs to it, out of the way as .bak; an older .bak is replaced."""
    with suppress(sqlite3.Error):  # a damaged file is moved as it is
        connection = sqlite3.connect(path)
        try:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            connection.close()
    for ending in ("-wal", "-shm", ""):
        source, aside = Path(f"{path}{ending}"), Path(f"{path}.bak{ending}")
        with writing(aside):
            aside.unlink(missing_ok=True)
            if source.exists():
                os.replace(source, aside)


def back_up(path: Path) -> None:
    """Keep a copy of an SQLite file as .bak; an older one is replaced once the copy is complete."""
    aside = path.with_name(path.name + ".bak")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(aside), _errors(str(path), path):
        source, copy = sqlite3.connect(path), sqlite3.connect(temporary)
        try:
            source.backup(copy)
        finally:
            source.close()
            copy.close()
        shutil.move(temporary, aside)


def _location(place: str | os.PathLike[str]) -> tuple[URL, Path | None]:
    text = os.fspath(place)
    if isinstance(place, str) and "://" in text:
        try:
            url = make_url(text)
        except ArgumentError as error:
            raise InvalidArgumentError(
                f"storage={text!r} is not a database URL, such as postgresql://user:password@host/database."
            ) from error
        local = url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:")
        return url, Path(str(url.database)) if local else None
    path = Path(text)
    return URL.create("sqlite", database=str(path)), path


@contextmanager
def _connected(url: URL, path: Path | None) -> Iterator[Storage]:
    shown = str(path) if path is not None else url.render_as_string(hide_password=True)
    if path is not None:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
    # Optuna takes braces in a URL for a template.
    text = url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
    options: dict[str, Any] = {"pool_pre_ping": True}
    if path is not None:
        settings = {"timeout": BUSY_SECONDS, "factory": _Connection}
        options = {"connect_args": settings}
        if not url.query:
            # Older versions of SQLAlchemy lose a path with a question mark on its way through a URL.
            text = "sqlite:///search"
            options = {"creator": partial(sqlite3.connect, str(path), check_same_thread=False, **settings)}
        _check_is_sqlite(path)
    with quiet_optuna(), _errors(shown, path):
        try:
            database = _Database(text, engine_kwargs=options)
        except (ImportError, NoSuchModuleError) as error:
            raise InvalidArgumentError(
                f"The driver of {shown} is not installed ({error}). Install it, for example psycopg2-binary for "
                "postgresql:// or pymysql for mysql+pymysql://."
            ) from error
        except RuntimeError as error:
            raise UnusableFileError(f"{shown} was made by another version of Optuna: {error}") from error
    try:
        yield Storage(shown, optuna.storages.get_storage(database), path, shared=path is None)
    finally:
        # Without connections, SQLite leaves a single file.
        database.remove_session()
        database.engine.dispose()


class _Database(RDBStorage):
    """Optuna's storage, which asks the database twice for every parameter of a new trial: 50 groups take 60 ms.

    Here parameters are always floats in [0, 1], so there is nothing to ask. An Optuna that does not call the method is
    as right, only slower.
    """

    def _set_trial_param_without_commit(
        self, session: Any, trial_id: int, param_name: str, param_value_internal: float, distribution: Any, *_: Any
    ) -> None:
        plain = distribution_to_json(distribution)
        session.add(
            TrialParamModel(
                trial_id=trial_id, param_name=param_name, param_value=param_value_internal, distribution_json=plain
            )
        )


class _Connection(sqlite3.Connection):
    """With a write-ahead log a commit need not wait for the disk, a kill loses none, and readers never block."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        mode = self.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        # Some file systems have no such log; there only waiting for the disk is safe.
        self.execute(f"PRAGMA synchronous={'NORMAL' if mode == 'wal' else 'FULL'}")


def _check_is_sqlite(path: Path) -> None:
    """Raise ResultsFileError for a file that is no SQLite database or is damaged."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with _errors(str(path), path):
        connection = sqlite3.connect(path, timeout=BUSY_SECONDS)
        try:
            found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        finally:
            connection.close()
    if found != "ok":
        raise _damaged(path, found)


@contextmanager
def _errors(where: str, path: Path | None) -> Iterator[None]:
    try:
        yield
    except (StorageInternalError, SQLAlchemyError, sqlite3.Error, OSError) as error:
        cause = _root(error)
        if isinstance(cause, sqlite3.DatabaseError) and not isinstance(cause, sqlite3.OperationalError):
            raise _damaged(path or where, str(cause)) from error
        verb = "Cannot use" if path is not None else "Cannot reach"
        raise ResultsFileError(
            f"{verb} {where}: {cause}. What is finished is kept; the search goes on from there when it is called again."
        ) from error


def _root(error: BaseException) -> BaseException:
    """What the database driver said, below what others made of it."""
    while True:
        below = getattr(error, "orig", None) or error.__cause__
        if below is None:
            return error
        error = below


def _damaged(path: object, why: str) -> UnusableFileError:
    return UnusableFileError(
        f"{path} is damaged or not a file of searches ({why}). Restore it, or begin anew with forced=True (the file is "
        "then kept as .bak)."
    )
