"""Whatever a disk does to a write, it is told with the file, what was there stays, and later it goes on from there."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

import channelwise as cw
from channelwise.errors import ResultsFileError
from channelwise.io.journal import Journal
from channelwise.io.lock import locked
from channelwise.methods import OneStepPruningRunner
from channelwise.search import open_study, read_searches
from tests.disks.conftest import Disk
from tests.fuzz.files import KINDS, Kind, graph
from tests.methods.small import INPUTS, net
from tests.search.searches import climb, space

WHOLE = [kind for kind in KINDS if kind.name in ("slim.safetensors", "Net.spec", "subnets.json", "setting.json")]


def refusal(action: Callable[[], object]) -> str:
    """What the error says that an action ends in, "" if it succeeds."""
    try:
        action()
    except ResultsFileError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", WHOLE, ids=lambda kind: kind.name)
def test_a_file_for_which_there_is_no_room_leaves_the_old_one(kind: Kind, disk: Disk) -> None:
    path = disk.path / kind.name
    kind.write(path)
    expected, before = kind.read(path), disk.names()
    refusals = []
    for pages in range(6):
        disk.leave(pages)
        refusals.append(refusal(lambda: kind.write(path)))
        assert kind.read(path) == expected
        assert disk.names() == before
    assert any(refusals)
    assert all(f"Cannot write {path}: No space" in text for text in refusals if text)
    disk.free()
    kind.write(path)


def test_a_journal_on_a_full_disk_keeps_its_lines(disk: Disk) -> None:
    journal = Journal(disk.path / "Net.sens")
    journal.create({"line": 0})
    written = [{"line": 0}]
    for pages in range(3):
        disk.leave(pages)
        record = {"line": pages, "text": "x" * 500}
        while not (text := refusal(lambda record=record: journal.append(record))):
            written.append(record)
        assert f"Cannot write {journal.path}: No space left on device" in text
        assert [record for _, record in journal.read()] == written
    disk.free()
    journal.append({"line": -1})
    assert [record for _, record in journal.read()] == [*written, {"line": -1}]


@pytest.mark.parametrize("pages", range(0, 24, 6))
def test_a_search_on_a_full_disk_loses_nothing_that_was_told(pages: int, disk: Disk) -> None:
    path = disk.path / "Net.search"
    with open_study(space(), "Net", storage=path, budget=4) as study:
        climb(study)
    told = {}

    def search() -> None:
        with open_study(space(), "Net", storage=path, budget=12) as study:
            while (candidate := study.ask()) is not None:
                study.tell(candidate.number, 0.25 + candidate.number)
                told[candidate.number] = 0.25 + candidate.number

    disk.leave(pages)
    text = refusal(search)
    assert not text or str(path) in text
    disk.free()
    found = read_searches(path, space().structure)[0]
    assert {n: t.score for n, t in found.trials.items() if n in told} == told
    assert len(found.complete) >= 4 + len(told)
    with open_study(space(), "Net", storage=path, budget=12) as study:
        climb(study)
        assert len(study.results.complete) == 12


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_an_error_of_the_disk_is_told_and_leaves_the_old_file(
    step: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "slim.safetensors"
    slim = graph().slim(graph().select(sparsity=0.5))
    path.write_text("old")

    def fails(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, step, fails)
    with pytest.raises(ResultsFileError, match=rf"Cannot write .*slim\.safetensors: {os.strerror(code)}"):
        cw.save(slim, path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == [path.name]


def test_a_line_of_a_journal_that_the_disk_refuses_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path / "Net.sens")
    journal.create({"line": 0})

    def fails(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fails)
        patched.setattr("channelwise.io.journal.SYNC_SECONDS", -1.0)
        with pytest.raises(ResultsFileError, match=r"Cannot write .*Net\.sens: Input/output error"):
            journal.append({"line": 1})
    journal.append({"line": 2})
    assert [record for _, record in journal.read()] == [{"line": 0}, {"line": 2}]


@pytest.mark.parametrize("kind", WHOLE, ids=lambda kind: kind.name)
def test_in_a_read_only_folder_files_are_read_and_writing_is_refused_by_name(
    kind: Kind, read_only: Callable[[Callable[[Path], None]], Path]
) -> None:
    path = read_only(lambda folder: kind.write(folder / kind.name)) / kind.name
    kind.read(path)
    with pytest.raises(ResultsFileError, match=rf"Cannot write {path.parent}"):
        kind.write(path)


def test_a_search_in_a_read_only_folder_is_read_and_pruned_to(
    read_only: Callable[[Callable[[Path], None]], Path],
) -> None:
    def score(model: object) -> float:
        return 1.0

    def fill(folder: Path) -> None:
        runner = OneStepPruningRunner(net(), INPUTS, folder=folder, quiet=True)
        runner.search(eval_fn=score, num_subnet=2, calibration_fn=lambda model: model(INPUTS), compensate=False)

    folder = read_only(fill)
    runner = OneStepPruningRunner(net(), INPUTS, folder=folder, quiet=True)
    assert len(runner.results().complete) >= 1
    with suppress(ResultsFileError):  # it cannot write the spec of what it made
        assert runner.prune()(INPUTS).shape == (2, 5)


def test_a_lock_for_which_there_is_no_room_is_not_left(disk: Disk) -> None:
    disk.leave(0)
    with (
        pytest.raises(ResultsFileError, match=r"Cannot write .*Net\.search\.lock: No space left"),
        locked(disk.path / "Net.search"),
    ):
        pass
    assert disk.names() == []
