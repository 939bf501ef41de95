"""Several processes on one search: nothing is done twice, and what a machine that vanished has begun is done again."""

from __future__ import annotations

import logging
import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError

from channelwise.io.process import Process, this_process
from channelwise.search import Candidate, Trial, open_study, signs
from channelwise.search.patience import Patient
from channelwise.search.storage import Storage
from tests.search.searches import climb, space


def shared(path: Path) -> RDBStorage:
    """A database that other processes may use: the file is not held."""
    return RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 60}})


def vanished(storage: RDBStorage, *, budget: int = 5) -> Candidate:
    """A candidate begun by a process on another machine, which is gone."""
    with open_study(space(), "Net", storage=storage, budget=budget) as study:
        begun = study.ask()
        study._mine.clear()  # it is not released, as when the machine is switched off
    assert begun is not None
    owned_by(storage, ELSEWHERE)
    return begun


def test_the_candidate_of_a_machine_that_vanished_is_evaluated_again_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    storage = shared(tmp_path / "all.db")
    begun = vanished(storage)
    with open_study(space(), "Net", storage=storage, budget=5) as study:
        assert len(climb(study)) == 4
        monkeypatch.setattr(signs, "SILENT_SECONDS", 0.5)
        assert study.left_by_others()
        (again,) = climb(study)
    assert again.counts == begun.counts
    assert len(study.results.complete) == 5
    assert "evaluated again: process 1 on another-machine no longer works on it" in caplog.text


def test_who_shows_signs_of_life_keeps_its_candidate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(signs, "BEAT_SECONDS", 0.1)
    storage = shared(tmp_path / "all.db")
    vanished(storage)
    (found,) = storage.get_all_studies()
    monkeypatch.setattr(signs, "this_process", lambda: ELSEWHERE)
    other = signs.Signs(Storage("all.db", storage), found._study_id)
    other.show()
    try:
        with open_study(space(), "Net", storage=storage, budget=5) as study:
            assert len(climb(study)) == 4
            assert not study.left_by_others()
    finally:
        other.end()
    assert "Candidates that others evaluate: 1 by process 1 on another-machine" in caplog.text


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


def test_what_others_have_finished_is_looked_at_once(tmp_path: Path) -> None:
    storage = shared(tmp_path / "all.db")
    with (
        open_study(space(), "Net", storage=storage, budget=30) as one,
        open_study(space(), "Net", storage=storage, budget=30) as two,
    ):
        mine = two.ask()
        assert mine is not None
        climb(one, 12)
        two._read()
        known = two._trials.by_number
        assert {trial.state for number, trial in known.items() if number != mine.number} == {"complete"}
        looked = Watched(known)
        two._trials.by_number = looked
        two._read()
        assert looked.at == [mine.number]
        climb(one, 2)
        two._read()
        assert looked.at == [mine.number] * 2 + [13, 14]
        assert len(two.results.complete) == 14


class Watched(dict[int, Trial]):
    """Trials, and which of them were looked at."""

    def __init__(self, trials: dict[int, Trial]) -> None:
        super().__init__(trials)
        self.at: list[int] = []

    def get(self, number: int, default: Any = None) -> Any:
        self.at.append(number)
        return super().get(number, default)


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


ELSEWHERE = Process(pid=1, host="another-machine", started="another-boot/pid:[1]/1")


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
    owned_by(storage, ended_process() if ended else ELSEWHERE)
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


def test_a_database_in_memory_is_not_shared(caplog: pytest.LogCaptureFixture) -> None:
    with open_study(space(), "Net", storage="sqlite://", budget=3) as study:
        assert len(climb(study)) == 3
    assert "sign of life" not in caplog.text


def test_what_a_search_of_this_process_could_not_release_is_evaluated_again(tmp_path: Path) -> None:
    storage = shared(tmp_path / "all.db")
    with open_study(space(), "Net", storage=storage, budget=5) as study:
        begun = study.ask()
        study._mine.clear()  # the database did not answer when it was to be released
    assert begun is not None
    with open_study(space(), "Net", storage=storage, budget=5) as study:
        assert begun.counts in [candidate.counts for candidate in climb(study)]
        assert len(study.results.complete) == 5


def test_a_call_whose_answer_was_lost_is_not_carried_out_twice(tmp_path: Path) -> None:
    class LosesAnswers:
        """Carries out what it is asked, and breaks off the connection before it answers, once for every call."""

        def __init__(self, storage: RDBStorage) -> None:
            self.storage, self.lost = storage, set[str]()

        def __getattr__(self, name: str) -> Any:
            method = getattr(self.storage, name)

            def call(*args: Any, **kwargs: Any) -> Any:
                found = method(*args, **kwargs)
                if name not in self.lost:
                    self.lost.add(name)
                    raise OperationalError("COMMIT", None, Exception("server closed the connection unexpectedly"))
                return found

            return call

    storage = shared(tmp_path / "all.db")
    flaky: Any = LosesAnswers(storage)
    patient = Patient(flaky, "all.db")
    study = storage.create_new_study([StudyDirection.MAXIMIZE], "one")
    template = optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs={"candidate": 1})
    number = patient.create_new_trial(study, template)
    assert [trial._trial_id for trial in storage.get_all_trials(study)] == [number]
    assert patient.set_trial_state_values(number, TrialState.COMPLETE, [0.5])
    assert patient.get_trial(number).value == 0.5
    assert flaky.lost >= {"create_new_trial", "set_trial_state_values", "get_trial"}
    assert patient.back > 0
    with pytest.raises(UpdateFinishedTrialError):
        patient.set_trial_state_values(number, TrialState.COMPLETE, [0.75])


def test_the_time_in_which_a_database_did_not_answer_is_nobodys_silence(tmp_path: Path) -> None:
    place = Storage("all.db", shared(tmp_path / "all.db"))
    study = place.optuna.create_new_study([StudyDirection.MAXIMIZE], "one")
    watching = signs.Signs(place, study)
    assert not watching.silent(ELSEWHERE)
    watching._seen = {name: (None, at - 2 * signs.SILENT_SECONDS) for name, (_, at) in watching._seen.items()}
    assert watching.silent(ELSEWHERE)
    place._patient = Patient(place.optuna, "all.db")
    place._patient.back = time.monotonic()
    assert not watching.silent(ELSEWHERE)
