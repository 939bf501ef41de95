"""Records come back equal, and what is wrong with a file is said."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from channelwise.errors import ResultsFileError
from channelwise.io.record import Record, read_json, write_json


class Thing(Record):
    name: str
    size: float


def test_record_is_read_back_equal(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "a.json", Thing(name="x", size=1.5))
    assert read_json(tmp_path / "new" / "a.json", Thing) == Thing(name="x", size=1.5)
    assert os.listdir(tmp_path / "new") == ["a.json"]


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
