"""Where searches are kept: files that are not ours, damaged, held, deleted or not to be written."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy

from channelwise.errors import InvalidArgumentError, ResultsFileError
from channelwise.search import latest, open_study, read_searches, rows, sqlite
from channelwise.search import storage as storage_module
from channelwise.search.storage import opened
from tests.search.searches import climb, space


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with a finished search of four candidates."""
    place = tmp_path / "Net.search"
    with open_study(space(), "Net", storage=place, budget=4) as study:
        climb(study)
    return place


def change(path: Path, statement: str, *values: Any) -> None:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute(statement, values).rowcount
        connection.commit()


def begin(path: Any, *, budget: int = 4, forced: bool = False, widths: tuple[int, ...] | None = None) -> int:
    """How many candidates a search begun, or gone on with, finds."""
    of = space() if widths is None else space(widths)
    with open_study(of, "Net", storage=path, budget=budget, forced=forced) as study:
        return len(study.results.trials)


def test_a_finished_search_is_one_file(path: Path) -> None:
    assert os.listdir(path.parent) == ["Net.search"]


def test_names_of_folders_may_have_any_sign(tmp_path: Path) -> None:
    path = tmp_path / "50% {of} it?#ä&=1" / "Net.search"
    with open_study(space(), "Net", storage=str(path), budget=2) as study:
        climb(study)
    assert len(read_searches(str(path), space().structure)[0].trials) == 2


def test_optuna_sees_kept_shares_as_parameters(path: Path) -> None:
    url = f"sqlite:///{path}"
    (name,) = optuna.get_all_study_names(url)
    assert name.startswith("Net macs=0.5 ")
    study = optuna.load_study(study_name=name, storage=url)
    results = read_searches(path, space().structure)[0]
    for trial in study.trials:
        counts = results.candidate(trial.number).counts
        full = space().structure.full()
        assert trial.params == pytest.approx({group: n / full[group] for group, n in counts.items()})
    assert study.best_value == results.best.score


def test_a_candidate_is_stored_as_optuna_itself_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Kathmandu")  # 5:45 before UTC
    time.tzset()
    began = datetime.now()
    files = [tmp_path / "one.search", tmp_path / "two.search"]
    try:
        for file in files:
            with open_study(space(), "Net", storage=file, budget=5) as study:
                climb(study, 3)
                failed, _ = study.ask(), study.ask()
                assert failed is not None
                study.tell(failed.number, error="It failed.", seconds=2.0)
            monkeypatch.setattr(rows, "known", lambda _: False)
        one, two = (optuna.load_study(study_name=None, storage=f"sqlite:///{file}") for file in files)
        times = [t for t in (*one.trials, *two.trials) for t in (t.datetime_start, t.datetime_complete)]
    finally:
        monkeypatch.undo()
        time.tzset()
    assert [t.state.name for t in one.trials] == ["COMPLETE"] * 3 + ["FAIL", "RUNNING"]
    for same in ("number", "state", "values", "params", "distributions", "user_attrs", "_trial_id"):
        assert [getattr(t, same) for t in one.trials] == [getattr(t, same) for t in two.trials]
    assert times.count(None) == 2  # of the running ones
    assert all(abs(moment - began) < timedelta(hours=1) for moment in times if moment is not None)


def test_optuna_goes_on_with_a_file_and_the_search_with_that(tmp_path: Path) -> None:
    path = tmp_path / "Net.search"
    with open_study(space(), "Net", storage=path, budget=5) as ours:
        climb(ours, 3)
        ours.ask()
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{path}")
    study.tell(3, 0.25)
    study.tell(study.ask(), state=optuna.trial.TrialState.PRUNED)
    with open_study(space(), "Net", storage=path, budget=5) as ours:
        assert [candidate.number for candidate in climb(ours)] == [5]
        assert len(ours.results.complete) == 5
    assert [t.number for t in study.get_trials()] == [0, 1, 2, 3, 4, 5]


def test_a_trial_ends_once(path: Path) -> None:
    with opened(path, lock=True) as storage, pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        storage.end_trial(1, 0.5, {"told": {}})
    assert len(read_searches(path, space().structure)[0].complete) == 4


def test_the_search_of_another_network_is_refused_and_left_alone(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(ResultsFileError, match=r"another network.*'net.0.conv' has 16 channels, not 20.*forced=True"):
        begin(path, widths=(20, 30))
    with pytest.raises(ResultsFileError, match="only of another one"):
        read_searches(path, space((20, 30)).structure)
    assert path.read_bytes() == before


def test_forced_replaces_another_network_and_keeps_its_file(path: Path) -> None:
    assert begin(path, widths=(20, 30), forced=True) == 0
    assert len(read_searches(f"{path}.bak", space().structure)[0].trials) == 4


def test_forced_begins_one_search_anew_and_leaves_the_others(path: Path) -> None:
    other = space(targets={"macs": 0.7})
    with open_study(other, "Net", storage=path, budget=3) as study:
        climb(study)
    assert begin(path, forced=True) == 0
    assert {len(r.trials) for r in read_searches(path, other.structure)} == {0, 3}
    assert {len(r.trials) for r in read_searches(f"{path}.bak", other.structure)} == {4, 3}


def test_a_newer_format_is_refused(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        (plain,) = connection.execute("SELECT value_json FROM study_user_attributes").fetchone()
    newer = json.dumps({**json.loads(plain), "version": 2, "something": "new"})
    change(path, "UPDATE study_user_attributes SET value_json = ?", newer)
    for use in (begin, lambda p: read_searches(p, space().structure)):
        with pytest.raises(ResultsFileError, match=r"format version 2.*reads 1\. Update channelwise"):
            use(path)


def not_a_database(path: Path) -> None:
    path.write_text("scores:\n" * 1000)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20000])


def overwritten(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[8192:40960] = b"\xff" * 32768
    path.write_bytes(content)


def of_other_groups(path: Path) -> None:
    change(path, "UPDATE trial_user_attributes SET value_json = '{\"a\": 3}' WHERE key = 'candidate'")


def without_counts(path: Path) -> None:
    change(path, "DELETE FROM trial_user_attributes WHERE key = 'candidate'")


def without_scores(path: Path) -> None:
    change(path, "DELETE FROM trial_values")


def of_another_optuna(path: Path) -> None:
    change(path, "UPDATE alembic_version SET version_num = 'v9.9.9.a'")


@pytest.mark.parametrize(
    "damage",
    [not_a_database, cut_short, overwritten, of_other_groups, without_counts, without_scores, of_another_optuna],
)
def test_a_damaged_file_is_named_and_forced_sets_it_aside(path: Path, damage: Callable[[Path], None]) -> None:
    damage(path)
    damaged = path.read_bytes()
    with pytest.raises(ResultsFileError, match=r"Net\.search (is damaged|was made by another version)"):
        begin(path)
    with pytest.raises(ResultsFileError, match=r"Net\.search"):
        read_searches(path, space().structure)
    assert path.read_bytes() == damaged
    assert begin(path, forced=True) == 0
    assert Path(f"{path}.bak").exists()


def test_an_empty_file_is_begun(tmp_path: Path) -> None:
    path = tmp_path / "Net.search"
    path.touch()
    assert begin(path) == 0


def test_a_file_in_use_is_refused_but_can_be_looked_at(path: Path) -> None:
    with open_study(space(), "Net", storage=path, budget=8) as study:
        candidate = study.ask()
        assert candidate is not None
        study.tell(candidate.number, 5.0)
        with pytest.raises(ResultsFileError, match=f"Process {os.getpid()} .* is working on the same results"):
            begin(path)
        with pytest.raises(ResultsFileError, match="is working on the same results"):
            begin(path, forced=True)
        assert read_searches(path, space().structure)[0].best.score == 5.0


def test_reading_what_is_not_there_says_so_and_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ResultsFileError, match=r"no file .*Net\.search.*Call search"):
        read_searches(tmp_path / "Net.search", space().structure)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResultsFileError, match="Cannot write"):
        begin(tmp_path / "file" / "Net.search")


def test_a_write_that_fails_is_told_and_loses_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise sqlalchemy.exc.OperationalError("INSERT", {}, sqlite3.OperationalError("database or disk is full"))

    with open_study(space(), "Net", storage=path, budget=8) as study:
        monkeypatch.setattr(rows, "end", full)
        candidate = study.ask()
        assert candidate is not None
        with pytest.raises(ResultsFileError, match=r"Net\.search: database or disk is full.*goes on from there"):
            study.tell(candidate.number, 1.0)
        monkeypatch.undo()
    assert len(read_searches(path, space().structure)[0].complete) == 4


def test_a_file_that_is_deleted_during_a_search_is_missed(path: Path) -> None:
    with open_study(space(), "Net", storage=path, budget=8) as study:
        candidate = study.ask()
        assert candidate is not None
        shutil.rmtree(path.parent)
        with pytest.raises(ResultsFileError, match=r"Net\.search was deleted or replaced while"):
            study.tell(candidate.number, 1.0)


def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if nothing could be written beside any file."""
    monkeypatch.setattr(sqlite, "in_read_only_folder", lambda path: True)


def test_a_finished_search_in_a_read_only_folder_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = [(entry.name, entry.stat().st_mtime_ns) for entry in os.scandir(path.parent)]
    read_only(monkeypatch)
    assert len(read_searches(path, space().structure)[0].complete) == 4
    with open_study(space(), "Net", storage=path, budget=4) as study:
        assert study.ask() is None
    with (
        open_study(space(), "Net", storage=path, budget=5) as study,
        pytest.raises(ResultsFileError, match=r"Cannot use .*Net\.search: attempt to write a readonly database"),
    ):
        study.ask()
    assert [(entry.name, entry.stat().st_mtime_ns) for entry in os.scandir(path.parent)] == before


def test_in_a_read_only_folder_what_a_kill_left_in_the_log_is_read(
    path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path_factory.mktemp("left")
    with open_study(space(), "Net", storage=path, budget=6) as study:
        climb(study)
        for name in os.listdir(path.parent):
            if not name.endswith(".lock"):
                shutil.copy(path.parent / name, left)
    assert (left / "Net.search-wal").stat().st_size
    read_only(monkeypatch)
    assert len(read_searches(left / path.name, space().structure)[0].complete) == 6


def test_the_latest_search_for_a_target_is_found(path: Path) -> None:
    for share, options in ((0.7, "a"), (0.5, "b"), (0.7, "c")):
        of = space(targets={"macs": share})
        with open_study(of, "Net", storage=path, budget=2, options={"weights": options}) as study:
            climb(study)
    searches = read_searches(path, space().structure)
    assert latest(searches).key.options == {"weights": "c"}
    assert latest(searches, {"macs": 1 - 0.5}).key.options == {"weights": "b"}
    with pytest.raises(ResultsFileError, match=r"no search for macs=0\.6, only for macs=0\.5; macs=0\.7"):
        latest(searches, {"macs": 0.6})


def test_a_missing_driver_is_told_without_the_password() -> None:
    with pytest.raises(InvalidArgumentError, match=r"firebird://me:\*\*\*@host/db is not installed") as caught:
        begin("firebird://me:secret@host/db")
    assert "secret" not in str(caught.value)


def test_a_database_out_of_reach_is_told_without_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise sqlalchemy.exc.OperationalError("", {}, ConnectionRefusedError(111, "Connection refused"))

    monkeypatch.setattr(storage_module, "RDBStorage", refuse)
    with pytest.raises(ResultsFileError, match=r"Cannot reach sqlite://me:\*\*\*@host: .*Connection refused") as caught:
        begin("sqlite://me:secret@host")
    assert "secret" not in str(caught.value)


def test_text_that_is_no_url_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="is not a database URL"):
        begin("://nowhere")


def test_a_url_of_sqlite_is_a_file_that_may_hold_other_studies(path: Path) -> None:
    url = f"sqlite:///{path}"
    optuna.create_study(study_name="somebody's", storage=url)
    assert begin(url, widths=(20, 30)) == 0
    assert begin(url) == 4
    assert begin(url, forced=True) == 0
    assert "somebody's" in optuna.get_all_study_names(url)


@pytest.mark.parametrize("place", [5, 1.5, True, b"searches.db", ["a"], object()])
def test_what_is_no_place_for_searches_is_refused(place: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"storage=.*must be the path of a file, a database URL"):
        begin(place)
