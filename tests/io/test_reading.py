"""What is read is a file, or an error says what it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from channelwise.errors import ResultsFileError
from channelwise.io.journal import Journal
from channelwise.io.reading import read
from channelwise.io.record import Record, read_json


@pytest.mark.parametrize("reader", [read, lambda path: read_json(path, Record), lambda path: Journal(path).read()])
def test_folders_and_pipes_are_refused_by_name_and_not_waited_for(
    reader: Callable[[Path], Any], tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (tmp_path, pipe):
        with pytest.raises(ResultsFileError, match=f"{path} is a folder, a device or a pipe"):
            reader(path)
    with pytest.raises(ResultsFileError, match=r"There is no file .*missing"):
        reader(tmp_path / "missing")
    with pytest.raises(ResultsFileError, match=r"Cannot read xxx.*too long"):
        reader(Path("x" * 400))


def test_a_file_comes_back_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\0\xff")
    assert read(tmp_path / "a") == b"\0\xff"
