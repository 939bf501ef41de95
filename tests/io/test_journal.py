"""A journal keeps what was added, in order, through kills and full disks, and names the line that is wrong."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from channelwise.errors import ResultsFileError
from channelwise.io.journal import Journal


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    journal = Journal(tmp_path / "log")
    journal.create({"line": 1}, {"line": 2})
    journal.append({"line": 3})
    return journal


def test_journal_keeps_records_in_order(journal: Journal) -> None:
    assert journal.read() == [(1, {"line": 1}), (2, {"line": 2}), (3, {"line": 3})]


@pytest.mark.parametrize("cut", [1, 2, 10])
def test_line_cut_short_by_a_kill_is_dropped_and_repaired(
    journal: Journal, cut: int, caplog: pytest.LogCaptureFixture
) -> None:
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole[:-cut])
    with caplog.at_level(logging.WARNING):
        assert [n for n, _ in journal.read()] == [1, 2]
    assert "line 3" in caplog.text
    journal.append({"line": 3})
    assert journal.path.read_bytes() == whole


def test_edited_line_is_named(journal: Journal) -> None:
    journal.path.write_text(journal.path.read_text().replace('"line": 2', '"line": 7'))
    with pytest.raises(ResultsFileError, match="line 2: it was edited"):
        journal.read()


@pytest.mark.parametrize("line", ["", "not json", "[1]", "{}", "[" * 100_000])
def test_line_that_is_no_record_is_named(journal: Journal, line: str) -> None:
    lines = journal.path.read_text().splitlines()
    journal.path.write_text("\n".join([lines[0], line, lines[2], ""]))
    with pytest.raises(ResultsFileError, match="line 2"):
        journal.read()


def test_failed_append_leaves_the_journal_as_it_was(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = journal.path.read_bytes()
    monkeypatch.setattr("channelwise.io.journal.SYNC_SECONDS", -1.0)
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(ResultsFileError, match="No space left"):
        journal.append({"line": 4})
    assert journal.path.read_bytes() == before


FULL = """
import os, resource, signal, sys
from channelwise.errors import ResultsFileError
from channelwise.io import journal

class ThenRoomAgain(journal.FileIO):
    def write(self, content):
        self.written = super().write(content)
        return self.written
    def truncate(self, size):
        super().truncate(size)
        if hasattr(self, "written"):
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

limits = resource.getrlimit(resource.RLIMIT_FSIZE)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(sys.argv[1]) + 40, limits[1]))
journal.FileIO = ThenRoomAgain
try:
    journal.Journal(sys.argv[1]).append({"line": 4, "text": "y" * 150})
except ResultsFileError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files")
def test_nothing_of_a_line_for_which_there_is_no_room_is_written_later(journal: Journal) -> None:
    before = journal.path.read_bytes()
    command = [sys.executable, "-c", FULL, str(journal.path)]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Cannot write" in process.stdout
    assert journal.path.read_bytes() == before
    journal.append({"line": 4})
    assert [n for n, _ in journal.read()] == [1, 2, 3, 4]


def test_long_last_line_without_end_is_cut_off(journal: Journal) -> None:
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole + b"x" * 10_000)
    journal.append({"line": 4})
    assert journal.path.read_bytes().startswith(whole)
    assert [n for n, _ in journal.read()] == [1, 2, 3, 4]
