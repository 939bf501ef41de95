"""Results files survive kills, full disks and two runs at once, and say what is wrong with them."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from channelwise.errors import ResultsFileError
from channelwise.io import files
from channelwise.io.files import Journal, LockOwner, Record, locked, read_json, write_json, write_text


class Thing(Record):
    name: str
    size: float


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_record_is_read_back_equal(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "a.json", Thing(name="x", size=1.5))
    assert read_json(tmp_path / "new" / "a.json", Thing) == Thing(name="x", size=1.5)
    assert os.listdir(tmp_path / "new") == ["a.json"]


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(ResultsFileError, match=r"a\.json: No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("")
    with pytest.raises(ResultsFileError, match=r"Cannot write .*folder/a\.json"):
        write_text(tmp_path / "folder" / "a.json", "new")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"name": "x"}', "size: Field required"),
        ('{"name": "x", "size": NaN}', "size"),
        ('{"name": "x", "size": "2"}', "size"),
        ('{"name": "x", "size": 2, "extra": 1}', "extra"),
        ('{"name": "x", "si', "Invalid JSON"),
    ],
)
def test_damaged_record_is_refused_with_the_reason(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ResultsFileError, match=problem):
        read_json(tmp_path / "a.json", Thing)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResultsFileError, match=r"no file .*a\.json"):
        read_json(tmp_path / "a.json", Thing)


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


def test_append_to_a_full_disk_leaves_the_journal_as_it_was(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    before = journal.path.read_bytes()
    monkeypatch.setattr("channelwise.io.files.SYNC_SECONDS", -1.0)
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(ResultsFileError, match="No space left"):
        journal.append({"line": 4})
    assert journal.path.read_bytes() == before


def test_long_last_line_without_end_is_cut_off(journal: Journal) -> None:
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole + b"x" * 10_000)
    journal.append({"line": 4})
    assert journal.path.read_bytes().startswith(whole)
    assert [n for n, _ in journal.read()] == [1, 2, 3, 4]


def test_lock_is_released_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(tmp_path / "a"):
        raise KeyError
    assert os.listdir(tmp_path) == []


def test_second_run_on_the_same_results_is_refused(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "a"),
        pytest.raises(ResultsFileError, match=f"Process {os.getpid()} on .* another folder"),
        locked(tmp_path / "a"),
    ):
        pass
    assert not (tmp_path / "a.lock").exists()


def hold(tmp_path: Path, **changes: object) -> Path:
    """A lock as this process would hold it, with some fields changed."""
    lock = tmp_path / "a.lock"
    with locked(tmp_path / "a"):
        owner = json.loads(lock.read_text())
    lock.write_text(LockOwner(**{**owner, **changes}).model_dump_json())
    return lock


def test_lock_of_a_dead_process_is_taken_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    hold(tmp_path, pid=dead.pid)
    with locked(tmp_path / "a"):
        assert json.loads((tmp_path / "a.lock").read_text())["pid"] == os.getpid()
    assert "Took over" in caplog.text
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="start times are read from /proc")
def test_lock_of_an_earlier_process_with_the_same_pid_is_taken_over(tmp_path: Path) -> None:
    hold(tmp_path, started="1")
    with locked(tmp_path / "a"):
        pass


def test_lock_of_another_machine_is_respected(tmp_path: Path) -> None:
    lock = hold(tmp_path, host=f"not-{socket.gethostname()}", pid=2**22 + 1)
    with pytest.raises(ResultsFileError, match=r"delete a\.lock"), locked(tmp_path / "a"):
        pass
    assert lock.exists()


def test_empty_old_lock_is_taken_over(tmp_path: Path) -> None:
    lock = tmp_path / "a.lock"
    lock.touch()
    os.utime(lock, (1, 1))
    with locked(tmp_path / "a"):
        pass


def test_empty_lock_from_the_future_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The machine's clock was set back after a kill.
    monkeypatch.setattr(files, "WRITING_SECONDS", 0.2)
    lock = tmp_path / "a.lock"
    lock.touch()
    os.utime(lock, (2**32, 2**32))
    with locked(tmp_path / "a"):
        pass
