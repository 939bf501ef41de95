"""Results files that survive kills: atomic JSON, an append-only JSON-lines journal, and a lock with the owner's pid."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from channelwise.errors import ResultsFileError

log = logging.getLogger(__name__)

Model = TypeVar("Model", bound=BaseModel)
SYNC_SECONDS = 1.0
WRITING_SECONDS = 5.0


class Record(BaseModel):
    """Base of everything stored: unknown fields and non-finite numbers are refused, values are not coerced."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn every failure to write ``path`` (no permission, disk full, not a folder) into a ResultsFileError."""
    try:
        yield
    except OSError as error:
        raise ResultsFileError(f"Cannot write {path}: {error.strerror or error}.") from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` to ``path`` so that a reader, or a crash, sees either the old file or the whole new one."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_json(path: str | os.PathLike[str], record: BaseModel) -> None:
    """Write a record as indented JSON, atomically."""
    write_text(path, record.model_dump_json(indent=2, exclude_none=True) + "\n")


def read_json(path: str | os.PathLike[str], kind: type[Model]) -> Model:
    """Read a record written by :func:`write_json`, or by hand; a ResultsFileError names what is wrong with it."""
    path = Path(path)
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise ResultsFileError(f"There is no file {path}.") from error
    except OSError as error:
        raise ResultsFileError(f"Cannot read {path}: {error.strerror or error}.") from error
    except ValidationError as error:
        raise ResultsFileError(f"{path} is damaged or not a {kind.__name__} file: {first_problem(error)}.") from error


def first_problem(error: ValidationError) -> str:
    """The first finding of pydantic as one short phrase."""
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where}: {problem['msg']}" if where else str(problem["msg"])


def sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` durable, where folders can be synced at all."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Journal:
    """Records of any JSON-able kind, one a line; an append is with the operating system when it returns.

    So it outlives the death of this process at any point. It is forced to the disk, which takes milliseconds, once a
    second: so much may be lost when the power fails. Every line ends in a checksum of itself, so that an edited or
    damaged line is found and named. A last line without line end is what a kill in the middle of an append leaves:
    it is dropped, and cut off by the next append.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._synced = 0.0

    def exists(self) -> bool:
        return self.path.exists()

    def create(self, *records: dict[str, Any]) -> None:
        """Begin the file anew with ``records``, atomically."""
        write_text(self.path, "".join(map(_line, records)))

    def append(self, record: dict[str, Any]) -> None:
        """Add one record; on failure (disk full) the file is left as it was."""
        with writing(self.path), open(self.path, "r+b") as file:
            end = _whole_lines(file)
            file.truncate(end)
            file.seek(end)
            try:
                file.write(_line(record).encode())
                file.flush()
                if time.monotonic() - self._synced > SYNC_SECONDS:
                    os.fsync(file.fileno())
                    self._synced = time.monotonic()
            except OSError:
                os.ftruncate(file.fileno(), end)
                raise

    def read(self) -> list[tuple[int, dict[str, Any]]]:
        """All records with their line numbers (from 1)."""
        try:
            lines = self.path.read_bytes().split(b"\n")
        except OSError as error:
            raise ResultsFileError(f"Cannot read {self.path}: {error.strerror or error}.") from error
        if lines.pop():
            log.warning("%s: dropped line %d, cut short when a run was killed.", self.path, len(lines) + 1)
        return [(number, self._parse(number, line)) for number, line in enumerate(lines, start=1)]

    def _parse(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict) or record.pop("check", None) != _checksum(record):
            raise self.damaged(number, "it was edited or damaged")
        return record

    def damaged(self, number: int, why: str) -> ResultsFileError:
        """The error for a line that cannot be used."""
        return ResultsFileError(
            f"{self.path}, line {number}: {why}. Restore the file, or delete it (or use forced=True) to begin anew."
        )


def _checksum(record: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(record, sort_keys=True).encode()):08x}"


def _line(record: dict[str, Any]) -> str:
    return json.dumps({**record, "check": _checksum(record)}) + "\n"


def _whole_lines(file: Any) -> int:
    """Length of the file up to its last line end. Looks backwards: the cost does not grow with the file."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 4096)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


class LockOwner(Record):
    """Who holds a lock. ``started`` tells a process from a later one with the same pid."""

    pid: int
    host: str
    started: str


@contextmanager
def locked(path: str | os.PathLike[str]) -> Iterator[None]:
    """Hold ``path`` + ".lock" while the block runs; the lock of a process that has died is taken over."""
    lock = Path(f"{os.fspath(path)}.lock")
    text = this_process().model_dump_json()
    with writing(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        while not _create(lock, text):
            _evict_dead_owner(lock, time.monotonic() - began)
    try:
        yield
    finally:
        with writing(lock):
            lock.unlink(missing_ok=True)


def _create(lock: Path, text: str) -> bool:
    try:
        handle = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    try:
        os.write(handle, text.encode())
    except OSError:
        lock.unlink()
        raise
    finally:
        os.close(handle)
    return True


def _evict_dead_owner(lock: Path, waited: float) -> None:
    """Remove ``lock`` if its owner has died; ResultsFileError if it lives or cannot be judged."""
    try:
        content = lock.read_bytes()
        age = time.time() - lock.stat().st_mtime
    except FileNotFoundError:
        return
    try:
        owner = LockOwner.model_validate_json(content)
    except ValidationError:
        # Its owner may be between creating and writing it. The age alone does not do: the clock may have been set back.
        if age < WRITING_SECONDS and waited < WRITING_SECONDS:
            time.sleep(0.05)
            return
        owner = None
    if owner is not None and not has_ended(owner):
        raise ResultsFileError(
            f"Process {owner.pid} on {owner.host} is working on the same results ({lock} is held). Wait for it or use "
            f"another folder; if it no longer runs, delete {lock.name}."
        )
    # Rename before deleting: of two processes that find the same dead owner only one wins, and a lock that
    # somebody took in between is seen in the content and put back.
    aside = lock.with_name(f"{lock.name}.{os.getpid()}.dead")
    try:
        os.rename(lock, aside)
    except FileNotFoundError:
        return
    if aside.read_bytes() != content:
        os.rename(aside, lock)
        return
    aside.unlink()
    log.warning("Took over %s from a process that has ended.", lock)


def this_process() -> LockOwner:
    """This process as the owner of a lock or of work that others can see."""
    pid = os.getpid()
    return LockOwner(pid=pid, host=socket.gethostname(), started=_started(pid) or "")


def has_ended(owner: LockOwner) -> bool:
    """Whether a process is known to have ended; of those on other machines nothing is known."""
    return owner.host == socket.gethostname() and _started(owner.pid) != owner.started


def _started(pid: int) -> str | None:
    """When process ``pid`` of this machine started, "" where that cannot be known; None if it does not run."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
    else:
        return None if fields[0] == "Z" else fields[19]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return ""
    return ""
