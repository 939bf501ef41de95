"""Files of searches in every state of damage: an error names the file, and forced=True begins anew."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from channelwise.errors import ResultsFileError
from channelwise.search import open_study, read_searches
from tests.search.searches import climb, space


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with a finished search of three candidates."""
    place = tmp_path / "Net.search"
    with open_study(space(), "Net", storage=place, budget=3) as study:
        climb(study)
    return place


def said(statement: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(statement)
            connection.commit()

    return damage


def replaced(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(change(path.read_bytes())) and None


def overwritten(content: bytes) -> bytes:
    half = len(content) // 2
    return content[:half] + b"\xff" * 200 + content[half + 200 :]


FORMS: dict[str, Callable[[Path], None]] = {
    "text": replaced(lambda _: b"hello"),
    "zeros": replaced(lambda _: bytes(5000)),
    "half of it": replaced(lambda content: content[: len(content) // 2]),
    "its beginning": replaced(lambda content: content[:100]),
    "bytes in the middle": replaced(overwritten),
    "no table of studies": said("drop table studies"),
    "no table of candidates": said("drop table trials"),
    "no scores": said("drop table trial_values"),
    "no attributes": said("drop table trial_user_attributes"),
    "a table without a column": said("alter table trials drop column state"),
    "a header that is no JSON": said("update study_user_attributes set value_json='{'"),
    "a header that is a list": said("update study_user_attributes set value_json='[1]'"),
    "a candidate that is no JSON": said("update trial_user_attributes set value_json='nope'"),
    "a candidate that is a number": said("update trial_user_attributes set value_json='3'"),
    "an unknown state": said("update trials set state='NOPE'"),
    "a parameter that is no JSON": said("update trial_params set distribution_json='{'"),
    "a score that is text": said("update trial_values set value='abc'"),
    "another score": said("update trial_values set value=value+1"),
    "another number": said("update trials set number=number+10"),
    "another duration": said("update trial_user_attributes set value_json=replace(value_json, 'null', '1.0')"),
    "another target": said("update study_user_attributes set value_json=replace(value_json, '0.5', '0.6')"),
    "a score of an unknown type": said("update trial_values set value_type='X'"),
    "an unknown direction": said("update study_directions set direction='UP'"),
    "a time that is none": said("update trials set datetime_start='x'"),
    "another version of Optuna": said("update alembic_version set version_num='zzz'"),
}


@pytest.mark.parametrize("form", FORMS)
def test_damage_is_told_with_the_file_and_the_way_out(form: str, path: Path) -> None:
    FORMS[form](path)
    with (
        pytest.raises(ResultsFileError, match=r"(?s)Net\.search .*forced=True"),
        open_study(space(), "Net", storage=path, budget=3) as study,
    ):
        climb(study)
    with pytest.raises(ResultsFileError, match=r"(?s)Net\.search .*forced=True"):
        read_searches(path, space().structure)


@pytest.mark.parametrize("form", FORMS)
def test_forced_begins_anew_whatever_the_damage(form: str, path: Path) -> None:
    FORMS[form](path)
    with open_study(space(), "Net", storage=path, budget=3, forced=True) as study:
        climb(study)
    assert len(read_searches(path, space().structure)[0].complete) == 3
    assert path.with_name("Net.search.bak").exists()


@pytest.mark.parametrize("forced", [False, True])
def test_a_folder_in_its_place_is_told(forced: bool, tmp_path: Path) -> None:
    (tmp_path / "Net.search").mkdir()
    with (
        pytest.raises(ResultsFileError, match=r"Net\.search is no file but a folder or a device. Move it away"),
        open_study(space(), "Net", storage=tmp_path / "Net.search", budget=2, forced=forced),
    ):
        pass


@pytest.mark.parametrize("target", ["/nowhere/Net.search", "Net.search"], ids=["nowhere", "itself"])
def test_forced_sets_a_link_aside_where_nothing_can_be(target: str, tmp_path: Path) -> None:
    path = tmp_path / "Net.search"
    path.symlink_to(target)
    with (
        pytest.raises(ResultsFileError, match=rf"it is a link to {target}.*forced=True"),
        open_study(space(), "Net", storage=path, budget=2),
    ):
        pass
    with open_study(space(), "Net", storage=path, budget=2, forced=True) as study:
        climb(study)
    assert not path.is_symlink()
    assert os.readlink(tmp_path / "Net.search.bak") == target


@pytest.mark.parametrize(("scheme", "told"), [("", "too long"), ("sqlite:///", "there is no folder")])
def test_too_long_a_path_is_told(scheme: str, told: str) -> None:
    place = scheme + "x" * 400 + "/a"
    with pytest.raises(ResultsFileError, match=f"xxx.*{told}"), open_study(space(), "N", storage=place, budget=2):
        pass


def test_what_a_kill_left_of_a_copy_goes_with_the_next(path: Path) -> None:
    (path.parent / ".Net.search.bak.0123456789ab.tmp").write_text("half of a copy")
    with open_study(space(), "Net", storage=path, budget=3, forced=True) as study:
        climb(study)
    assert sorted(os.listdir(path.parent)) == ["Net.search", "Net.search.bak"]
