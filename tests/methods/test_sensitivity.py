"""The .sens file is of one network, is extended line by line and is never half replaced."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from channelwise import trace
from channelwise.errors import ResultsFileError
from channelwise.io.journal import Journal
from channelwise.methods.sensitivity import Measurement, Plan, SensitivityFile, kept_counts
from channelwise.structure import Structure
from tests.methods.small import INPUTS, evaluations, net

PLAN = Plan(excluded=[], weights="0")


@pytest.fixture(scope="module")
def structure() -> Structure:
    return trace(net(), INPUTS).structure


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "Net.sens"


@pytest.fixture
def file(path: Path, structure: Structure) -> SensitivityFile:
    file = SensitivityFile(path, "Net", structure)
    file.begin(PLAN, anew=True)
    file.append(Measurement(score=0.9, seconds=0.1))
    file.append(Measurement(group="first", kept=4, sparsity=0.5, score=0.8, seconds=0.1))
    return file


def test_small_groups_have_fewer_counts(structure: Structure) -> None:
    counts = kept_counts(structure)
    assert counts["third"] == {1: 0.3}
    assert counts["first"] == {7: 0.1, 6: 0.2, 5: 0.4, 4: 0.5, 3: 0.6, 2: 0.7, 1: 0.9}
    assert 1 + sum(map(len, counts.values())) == evaluations()


def test_what_was_appended_is_loaded(file: SensitivityFile) -> None:
    loaded = file.load()
    assert loaded is not None
    assert (loaded.baseline, loaded.scores, loaded.plan) == (0.9, {"first": {4: 0.8}}, PLAN)


def test_only_missing_counts_of_groups_that_are_not_excluded_remain(
    file: SensitivityFile, structure: Structure
) -> None:
    loaded = file.load()
    assert loaded is not None
    assert loaded.missing(structure, ["second"]) == {
        "first": {7: 0.1, 6: 0.2, 5: 0.4, 3: 0.6, 2: 0.7, 1: 0.9},
        "third": {1: 0.3},
    }


def test_nothing_is_written_before_the_first_result(file: SensitivityFile, path: Path) -> None:
    before = path.read_bytes()
    file.begin(PLAN, anew=True)
    assert path.read_bytes() == before
    assert not file.backup.exists()


def test_replaced_file_is_kept_until_the_new_one_is_finished(file: SensitivityFile, path: Path) -> None:
    before = path.read_bytes()
    file.begin(PLAN, anew=True)
    file.append(Measurement(score=0.5, seconds=0.1))
    assert file.backup.read_bytes() == before
    file.finish()
    assert not file.backup.exists()
    assert file.load().baseline == 0.5  # type: ignore[union-attr]


def test_replaced_file_of_another_network_is_kept_for_good(file: SensitivityFile, path: Path) -> None:
    other = SensitivityFile(path, "Net", trace(net(6), INPUTS).structure)
    other.begin(PLAN, anew=True)
    other.append(Measurement(score=0.5, seconds=0.1))
    other.finish()
    assert file.backup.exists()


def test_file_of_another_network_is_refused_with_the_ways_out(file: SensitivityFile, path: Path) -> None:
    other = SensitivityFile(path, "Net", trace(net(6), INPUTS).structure)
    with pytest.raises(ResultsFileError, match=r"another network.*folder='\.\.\.'.*another name.*forced=True"):
        other.load()


def test_newer_format_is_refused(path: Path, structure: Structure) -> None:
    Journal(path).create({"format": "channelwise-sensitivity", "version": 99})
    with pytest.raises(ResultsFileError, match=r"format version 99.*Update"):
        SensitivityFile(path, "Net", structure).load()


def test_other_file_is_refused(path: Path, structure: Structure) -> None:
    Journal(path).create({"something": "else"})
    with pytest.raises(ResultsFileError, match=r"Net\.sens, line 1"):
        SensitivityFile(path, "Net", structure).load()


@pytest.mark.parametrize("content", ["", "{", "a text", "a text\n", '{"format": "channelwise-sensitivity"}\n'])
def test_file_without_a_header_is_refused(
    path: Path, structure: Structure, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_text(content)
    with pytest.raises(ResultsFileError, match="line 1: this is another kind of file"):
        SensitivityFile(path, "Net", structure).load()
    assert not caplog.text


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ({"kind": "evaluation", "group": "nowhere", "kept": 3, "score": 0.1, "seconds": 1.0}, "no group 'nowhere'"),
        ({"kind": "evaluation", "group": "first", "kept": 9, "score": 0.1, "seconds": 1.0}, "'first' that can keep 9"),
        ({"kind": "evaluation", "group": "first", "kept": 3, "score": "high", "seconds": 1.0}, "score"),
        ({"kind": "evaluation", "group": "first", "kept": 3, "seconds": 1.0}, "score: Field required"),
        ({"kind": "surprise"}, "kind"),
    ],
)
def test_line_that_makes_no_sense_is_named(
    file: SensitivityFile, path: Path, line: dict[str, object], problem: str
) -> None:
    Journal(path).append(line)
    with pytest.raises(ResultsFileError, match=f"line 5: .*{problem}"):
        file.load()


def test_edited_score_is_noticed(file: SensitivityFile, path: Path) -> None:
    path.write_text(path.read_text().replace("0.8", "0.95"))
    with pytest.raises(ResultsFileError, match="line 4"):
        file.load()


def test_file_holds_plain_json_lines(file: SensitivityFile, path: Path) -> None:
    assert [json.loads(line).get("kind", "header") for line in path.read_text().splitlines()] == [
        "header",
        "plan",
        "evaluation",
        "evaluation",
    ]
