"""Whole files: the old content or the new one, and nothing else beside them, however a writer ends."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from channelwise.errors import ResultsFileError
from channelwise.io.atomic import write


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(ResultsFileError, match=r"a\.json: No space left"):
        write(path, b"new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("")
    with pytest.raises(ResultsFileError, match=r"Cannot write .*folder/a\.json"):
        write(tmp_path / "folder" / "a.json", b"new")


KILLED = """
import os, sys
from channelwise.io.atomic import write
os.replace = lambda *_: os.kill(os.getpid(), 9)
write(sys.argv[1], b"never whole")
"""


def test_what_a_killed_writer_has_left_goes_with_the_next_write(tmp_path: Path) -> None:
    path = tmp_path / "a [1].json"
    path.write_text("old")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 2
    assert path.read_text() == "old"
    write(path, b"new")
    assert os.listdir(tmp_path) == [path.name]


def test_the_temporary_file_of_a_writer_that_lives_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, replace = tmp_path / "a.json", os.replace

    def interrupted(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "replace", replace)
        write(path, b"the other")
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    write(path, b"the one")
    assert path.read_text() == "the one"
    assert os.listdir(tmp_path) == ["a.json"]
