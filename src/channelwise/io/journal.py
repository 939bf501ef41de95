"""A file of JSON lines to which one record after the other is added; a kill at any moment costs at most the last."""

from __future__ import annotations

import json
import logging
import os
import time
from io import FileIO
from pathlib import Path
from typing import Any

from channelwise.errors import ResultsFileError
from channelwise.io.atomic import write, writing
from channelwise.io.held import write_all
from channelwise.io.reading import exists, read
from channelwise.io.record import checksum

log = logging.getLogger(__name__)

SYNC_SECONDS = 1.0
NO_JOURNAL = "this is another kind of file, or it was edited or damaged"


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
        return exists(self.path)

    def create(self, *records: dict[str, Any]) -> None:
        """Begin the file anew with ``records``, atomically."""
        write(self.path, b"".join(map(_line, records)))

    def append(self, record: dict[str, Any]) -> None:
        """Add one record; on failure (disk full) the file is left as it was."""
        with writing(self.path), FileIO(self.path, "r+") as file:
            end = _whole_lines(file)
            file.truncate(end)
            file.seek(end)
            try:
                write_all(file, _line(record))
                if time.monotonic() - self._synced > SYNC_SECONDS:
                    os.fsync(file.fileno())
                    self._synced = time.monotonic()
            except OSError:
                file.truncate(end)
                raise

    def read(self) -> list[tuple[int, dict[str, Any]]]:
        """All records with their line numbers (from 1)."""
        lines = read(self.path).split(b"\n")
        if lines.pop() and lines:
            log.warning("%s: dropped line %d, cut short when a run was killed.", self.path, len(lines) + 1)
        return [(number, self._parse(number, line)) for number, line in enumerate(lines, start=1)]

    def _parse(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict) or record.pop("check", None) != checksum(record):
            raise self.damaged(number, "it was edited or damaged" if number > 1 else NO_JOURNAL)
        return record

    def damaged(self, number: int, why: str) -> ResultsFileError:
        """The error for a line that cannot be used."""
        return ResultsFileError(
            f"{self.path}, line {number}: {why}. Restore the file, or delete it (or use forced=True) to begin anew."
        )


def _line(record: dict[str, Any]) -> bytes:
    return (json.dumps({**record, "check": checksum(record)}) + "\n").encode()


def _whole_lines(file: FileIO) -> int:
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
