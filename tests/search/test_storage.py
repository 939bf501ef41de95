"""Where searches are kept: files that are not ours, damaged or held, and databases that several processes share."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import sqlalchemy
from optuna.storages import RDBStorage

from channelwise.errors import InvalidArgumentError, ResultsFileError
from channelwise.io.process import Process, this_process
from channelwise.search import Candidate, latest, open_study, read_searches
from channelwise.search import storage as storage_module
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


def test_the_search_of_another_network_is_refused_and_left_alone(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(ResultsFileError, match=r"Net\.search is the search of another network.*forced=True"):
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
        monkeypatch.setattr(RDBStorage, "set_trial_state_values", full)
        candidate = study.ask()
        assert candidate is not None
        with pytest.raises(ResultsFileError, match=r"Net\.search: database or disk is full.*goes on from there"):
            study.tell(candidate.number, 1.0)
        monkeypatch.undo()
    assert len(read_searches(path, space().structure)[0].complete) == 4


def test_the_latest_search_for_a_target_is_found(path: Path) -> None:
    for share, options in ((0.7, "a"), (0.5, "b"), (0.7, "c")):
        of = space(targets={"macs": share})
        with open_study(of, "Net", storage=path, budget=2, options={"weights": options}) as study:
            climb(study)
    searches = read_searches(path, space().structure)
    assert latest(searches).key.options == {"weights": "c"}
    assert latest(searches, {"macs": 1 - 0.5}).key.options == {"weights": "b"}
    with pytest.raises(ResultsFileError, match=r"no search for macs=0\.6 .*only for macs=0\.5; macs=0\.7"):
        latest(searches, {"macs": 0.6})


def test_a_missing_driver_is_told_without_the_password() -> None:
    with pytest.raises(InvalidArgumentError, match=r"firebird://me:\*\*\*@host/db is not installed") as caught:
        begin("firebird://me:secret@host/db")
    assert "secret" not in str(caught.value)


def test_a_database_out_of_reach_is_told_without_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise sqlalchemy.exc.OperationalError("", {}, ConnectionRefusedError(111, "Connection refused"))

    monkeypatch.setattr(storage_module, "_Database", refuse)
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


def shared(path: Path) -> RDBStorage:
    """A database that other processes may use: the file is not held."""
    return RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 60}})


def test_several_drivers_share_a_search_without_doing_anything_twice(tmp_path: Path) -> None:
    storage = shared(tmp_path / "all.db")
    settings: dict[str, Any] = {"storage": storage, "budget": 14, "priors": [np.full(6, 0.5)]}
    with open_study(space(), "Net", **settings) as one, open_study(space(), "Net", **settings) as two:
        asked: list[Candidate] = []
        for study in [one, two] * 7:
            candidate = study.ask()
            assert candidate is not None
            asked.append(candidate)
            if len(asked) % 3:
                study.tell(candidate.number, float(len(asked)))
        assert one.ask() is None
        assert two.ask() is None
    assert len({tuple(c.counts.values()) for c in asked}) == 14
    assert len({c.number for c in asked}) == 14


def test_a_driver_that_was_slower_withdraws_the_same_candidate(tmp_path: Path) -> None:
    storage = shared(tmp_path / "all.db")
    with (
        open_study(space(), "Net", storage=storage, budget=6) as one,
        open_study(space(), "Net", storage=storage, budget=6) as two,
    ):
        first = one.ask()
        assert first is not None
        read = two._read
        # Between looking and adding, the other driver has added the same candidate.
        two._read = lambda: None  # type: ignore[method-assign]
        add = two._add

        def late(*arguments: Any) -> Any:
            two._read = read  # type: ignore[method-assign]
            return add(*arguments)

        two._add = late  # type: ignore[method-assign]
        second = two.ask()
        assert second is not None
        assert second.counts != first.counts
        assert len(two.results.trials) == 2


def owned_by(storage: RDBStorage, owner: Process) -> None:
    (study,) = storage.get_all_studies()
    for trial in storage.get_all_trials(study._study_id):
        if not trial.state.is_finished():
            storage.set_trial_user_attr(trial._trial_id, "owner", owner.model_dump())


def ended_process() -> Process:
    process = multiprocessing.get_context("fork").Process(target=int)
    process.start()
    pid = process.pid
    process.join()
    assert pid is not None
    return this_process().model_copy(update={"pid": pid})


@pytest.mark.parametrize("ended", [True, False])
def test_only_what_an_ended_process_has_begun_is_taken_over(
    tmp_path: Path, ended: bool, caplog: pytest.LogCaptureFixture
) -> None:
    storage = shared(tmp_path / "all.db")
    with open_study(space(), "Net", storage=storage, budget=5) as study:
        begun = study.ask()
        study._mine.clear()  # it is not released, as when the process is killed
    assert begun is not None
    elsewhere = Process(pid=1, host="another-machine", started="1")
    owned_by(storage, ended_process() if ended else elsewhere)
    with caplog.at_level(logging.INFO), open_study(space(), "Net", storage=storage, budget=5) as study:
        asked = climb(study)
    assert (begun.counts in [c.counts for c in asked]) == ended
    assert len(asked) == (5 if ended else 4)
    assert ("another-machine" in caplog.text) != ended


def test_what_a_driver_leaves_is_free_for_others(tmp_path: Path) -> None:
    storage = shared(tmp_path / "all.db")
    with open_study(space(), "Net", storage=storage, budget=5) as study:
        begun = study.ask()
    assert begun is not None
    with open_study(space(), "Net", storage=storage, budget=5) as study:
        asked = climb(study)
    assert [c.counts for c in asked].count(begun.counts) == 1
    assert len(study.results.complete) == 5


def test_a_candidate_that_was_taken_over_is_dropped_by_its_former_driver(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = shared(tmp_path / "all.db")
    with open_study(space(), "Net", storage=storage, budget=5) as slow:
        begun = slow.ask()
        assert begun is not None
        owned_by(storage, ended_process())
        with open_study(space(), "Net", storage=storage, budget=5) as study:
            climb(study)
        slow.tell(begun.number, 9.0)
        assert slow.ask() is None
    assert "taken over" in caplog.text
    assert len(study.results.complete) == 5
