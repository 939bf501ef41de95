"""Where searches are kept: Optuna's storage in memory, in an SQLite file that survives kills, or in any database."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage, get_storage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from channelwise.errors import InvalidArgumentError, ResultsFileError
from channelwise.io.atomic import writing
from channelwise.io.journal import SYNC_SECONDS
from channelwise.io.lock import locked
from channelwise.io.paths import is_path
from channelwise.io.reading import exists
from channelwise.search import rows, sqlite
from channelwise.search.failures import UnusableFileError, storage_errors
from channelwise.search.patience import Patient
from channelwise.search.sampler import quiet_optuna

log = logging.getLogger(__name__)

NO_FILE = (None, "", ":memory:")
"""What SQLite's URLs say instead of a path."""


class Storage:
    """One place where searches are kept.

    ``path``: the SQLite file, None for memory and databases. ``shared``: other processes may add to it at any time.
    """

    def __init__(self, where: str, storage: BaseStorage, path: Path | None = None) -> None:
        self.where = where
        self.optuna = get_storage(storage)
        self.path = path
        self.shared = path is None and not _in_memory(storage)
        self._database = storage if isinstance(storage, RDBStorage) and rows.known(storage) else None
        self._patient: Patient | None = None
        if isinstance(storage, RDBStorage) and not _is_sqlite(storage.engine.url):
            self._patient = Patient(self.optuna, where)
            self.optuna = cast(BaseStorage, self._patient)
        self._synced = 0.0
        self._file = _identity(path)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn what goes wrong with the storage into a ResultsFileError that names it; Optuna itself stays silent."""
        with quiet_optuna(), storage_errors(self.where, self.path):
            yield

    def add_trial(self, study: int, number: int, trial: FrozenTrial, shares: Mapping[str, float]) -> int:
        """Store a trial with parameters ``shares``, which are for people to look at; returns its id.

        Arguments:
            number: the trial's, if nobody else writes to the storage.
        """
        if self._database is None:
            trial.params, trial.distributions = dict(shares), dict.fromkeys(shares, rows.SHARE)
            return self.optuna.create_new_trial(study, trial)
        if not self.shared:
            return rows.begin(self._database, study, number, trial, shares)
        trial_id = self.optuna.create_new_trial(study, trial)
        write = partial(rows.add_parameters, self._database, trial_id, shares)
        if self._patient is None:
            write()
        else:
            self._patient.keep_asking(write, again=partial(write, anew=True))
        return trial_id

    def end_trial(self, trial_id: int, score: float | None, attributes: Mapping[str, Any]) -> None:
        """Store the end of a trial: its score, or None for one that failed, and what is said of it.

        Raises:
            UpdateFinishedTrialError: it has ended already.
        """
        state = TrialState.FAIL if score is None else TrialState.COMPLETE
        if self._database is not None and not self.shared:
            rows.end(self._database, trial_id, state, score, attributes)
            return
        for name, value in attributes.items():
            self.optuna.set_trial_user_attr(trial_id, name, value)
        self.optuna.set_trial_state_values(trial_id, state, None if score is None else [score])

    def read_everything(self) -> None:
        """Raise ResultsFileError if something in the storage cannot be read."""
        with self.errors():
            for study in self.optuna.get_all_studies():
                self.optuna.get_all_trials(self.optuna.get_study_id_from_name(study.study_name), deepcopy=False)

    @property
    def back(self) -> float:
        """When a database that did not answer has answered again, by `time.monotonic`; 0 if it always has."""
        return 0.0 if self._patient is None else self._patient.back

    def sync(self) -> None:
        """Force what was committed to the disk, once a second: the rest is with the operating system already.

        Raises:
            ResultsFileError: the file is no longer there. SQLite itself goes on writing to a file without a name.
        """
        if self.path is None:
            return
        if _identity(self.path) != self._file:
            raise ResultsFileError(
                f"{self.path} was deleted or replaced while the search was running, and what it held is lost. Leave it "
                "where it is, and call search again."
            )
        if time.monotonic() - self._synced < SYNC_SECONDS:
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
    must exist. In a read-only folder it may be looked at in either case. ``check`` may raise UnusableFileError for what
    an SQLite file holds; ``forced`` sets aside a file that cannot be used.

    Raises:
        ResultsFileError: damaged, of an incompatible version of Optuna, held by another process, or out of reach.
        InvalidArgumentError: not a URL, or its driver is not installed.
    """
    if place is None:
        yield Storage("memory", InMemoryStorage())
        return
    if isinstance(place, BaseStorage):
        yield Storage(type(place).__name__, place)
        return
    if not is_path(place):
        raise InvalidArgumentError(
            f"storage={place!r}: must be the path of a file, a database URL such as "
            "postgresql+psycopg://user:password@host/database, or an Optuna storage."
        )
    url, path = _location(place)
    if path is None:
        with _connected(url, None) as storage:
            yield storage
        return
    if not lock and not exists(path):
        raise ResultsFileError(f"There is no file {path}. Call search() first.")
    if sqlite.in_read_only_folder(path) and not forced:
        with sqlite.copied(path) as copy, _connected(url, path, copy=copy) as storage:
            if check is not None:
                check(storage)
            yield storage
        return
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
            storage.read_everything()
    except UnusableFileError as error:
        log.warning("%s The old file is now %s.bak.", error, path.name)
        sqlite.set_aside(path)


def _location(place: str | os.PathLike[str]) -> tuple[URL, Path | None]:
    text = os.fspath(place)
    if isinstance(place, str) and "://" in text:
        try:
            url = make_url(text)
        except ArgumentError as error:
            raise InvalidArgumentError(
                f"storage={text!r} is not a database URL, such as postgresql+psycopg://user:password@host/database."
            ) from error
        file = Path(str(url.database)) if _is_sqlite(url) and url.database not in NO_FILE else None
        if file is not None and not os.path.isdir(file.parent):
            raise ResultsFileError(f"storage={text!r}: there is no folder {file.parent}. Make it, or give another one.")
        return url, file
    path = Path(text)
    return URL.create("sqlite", database=str(path)), path


@contextmanager
def _connected(url: URL, path: Path | None, *, copy: Path | None = None) -> Iterator[Storage]:
    """The database at a URL, which may be the file ``path``; with ``copy`` that is opened instead, for reading."""
    shown = str(path) if path is not None else url.render_as_string(hide_password=True)
    text = url.render_as_string(hide_password=False)
    options: dict[str, Any] = {"pool_pre_ping": True}
    if path is not None:
        if copy is None:
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
        sqlite.check_is_sqlite(copy or path)
        query = bool(url.query) and copy is None
        options = sqlite.engine_options(copy or path, query=query, read_only=copy is not None)
        text = text if query else "sqlite:///search"
    with quiet_optuna(), storage_errors(shown, path):
        try:
            # Optuna takes braces in a URL for a template.
            database = RDBStorage(text.replace("{", "{{").replace("}", "}}"), engine_kwargs=options)
        except (ImportError, NoSuchModuleError) as error:
            raise InvalidArgumentError(
                f"The driver of {shown} is not installed ({error}). Install it, for example psycopg[binary] for "
                "postgresql+psycopg:// or pymysql for mysql+pymysql://."
            ) from error
        except RuntimeError as error:
            raise UnusableFileError(
                f"{shown} was made by another version of Optuna ({error}). Use that version, or begin anew with "
                "forced=True."
            ) from error
    try:
        yield Storage(shown, database, path)
    finally:
        # Without connections, SQLite leaves a single file.
        database.remove_session()
        database.engine.dispose()


def _is_sqlite(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def _in_memory(storage: BaseStorage) -> bool:
    """Whether no other process can see a storage, and no other thread a database in memory."""
    if isinstance(storage, RDBStorage):
        return _is_sqlite(storage.engine.url) and storage.engine.url.database in NO_FILE
    return isinstance(storage, InMemoryStorage)


def _identity(path: Path | None) -> tuple[int, int] | None:
    """Which file is at ``path``, if there is one."""
    try:
        found = os.stat(path) if path is not None else None
    except FileNotFoundError:
        return None
    return None if found is None else (found.st_dev, found.st_ino)
