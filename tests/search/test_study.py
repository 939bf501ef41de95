"""The open loop of a search: what is asked, what is recorded, and what is never done twice."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from channelwise.errors import InvalidArgumentError
from channelwise.search import Candidate, Request, open_study, read_searches
from tests.search.searches import climb, height, space


def counts_of(asked: list[Candidate]) -> list[dict[str, int]]:
    return [dict(candidate.counts) for candidate in asked]


@pytest.mark.parametrize("strategy", ["random", "evolution", "cmaes", "tpe"])
def test_no_candidate_is_asked_twice(strategy: str) -> None:
    with open_study(space((16, 16, 16)), "Net", strategy=strategy, budget=20) as study:
        asked = []
        while (candidate := study.ask()) is not None:
            asked.append(candidate)
            study.tell(candidate.number, 1.0)
    assert len({tuple(c.counts.values()) for c in asked}) == len(asked) == 20


def test_candidates_under_evaluation_are_not_asked_again() -> None:
    with open_study(space(), "Net", budget=20) as study:
        asked = [study.ask() for _ in range(20)]
    assert len({tuple(c.counts.values()) for c in asked if c is not None}) == 20


def test_a_small_space_ends_when_it_is_exhausted(caplog: pytest.LogCaptureFixture) -> None:
    of = space((6, 4))
    listed = of.listed()
    assert listed is not None
    with open_study(of, "Net", budget=500, strategy="random") as study:
        asked = []
        while (candidate := study.ask()) is not None:
            asked.append(tuple(candidate.counts.values()))
            study.tell(candidate.number, 0.0)
        assert study.exhausted
    assert sorted(asked) == sorted(map(tuple, listed.tolist()))
    assert "No other candidate meets the targets" in caplog.text


@pytest.mark.parametrize("strategy", ["evolution", "cmaes", "tpe"])
def test_guided_strategies_begin_with_the_priors(strategy: str) -> None:
    of = space()
    priors: list[Any] = [np.full(6, 0.4), of.project(np.linspace(0, 1, 6)), of.named(of.project(np.linspace(1, 0, 6)))]
    with open_study(of, "Net", strategy=strategy, priors=[*priors, priors[0]], budget=5) as study:
        asked = counts_of(climb(study))
    assert asked[:3] == [of.named(of.candidate(prior)) for prior in priors]
    assert asked[3] not in asked[:3]


def test_random_search_has_no_priors() -> None:
    with open_study(space(), "Net", strategy="random", budget=8) as study:
        alone = counts_of(climb(study))
    with open_study(space(), "Net", strategy="random", priors=[np.full(6, 0.4)], budget=8) as study:
        assert counts_of(climb(study)) == alone


@pytest.mark.parametrize("strategy", ["random", "evolution", "cmaes", "tpe"])
def test_a_seed_decides_the_candidates(strategy: str) -> None:
    def asked(seed: int) -> list[dict[str, int]]:
        with open_study(space(), "Net", strategy=strategy, seed=seed, budget=20) as study:
            return counts_of(climb(study))

    assert asked(3) == asked(3)
    assert asked(3) != asked(4)


@pytest.mark.parametrize("strategy", ["random", "evolution", "cmaes", "tpe"])
def test_an_interrupted_search_goes_on_as_if_nothing_had_happened(tmp_path: Path, strategy: str) -> None:
    def searched(name: str, stops: tuple[int, ...]) -> dict[int, Any]:
        for stop in (*stops, 100):
            with open_study(space(), "Net", storage=tmp_path / name, strategy=strategy, budget=24) as study:
                climb(study, stop)
                if stop < 100:
                    study.ask()  # what was asked here is never told
        return {n: (t.counts, t.score, t.state) for n, t in study.results.trials.items()}

    assert searched("broken.search", (1, 7, 0, 6)) == searched("whole.search", ())


def test_what_was_begun_is_asked_first_and_under_its_number(tmp_path: Path) -> None:
    with open_study(space(), "Net", storage=tmp_path / "Net.search", budget=10) as study:
        begun = [study.ask() for _ in range(3)]
        assert begun[1] is not None
        study.tell(begun[1].number, 1.0)
    with open_study(space(), "Net", storage=tmp_path / "Net.search", budget=10) as study:
        assert [study.ask(), study.ask()] == [begun[0], begun[2]]
        new = study.ask()
        assert new is not None
        assert new.number == 3


def test_a_search_can_be_made_longer(tmp_path: Path) -> None:
    for budget in (5, 8):
        with open_study(space(), "Net", storage=tmp_path / "Net.search", budget=budget) as study:
            climb(study)
        assert sorted(study.results.trials) == list(range(budget))


def test_a_failed_candidate_is_kept_with_its_error_and_not_repeated(tmp_path: Path) -> None:
    with open_study(space(), "Net", storage=tmp_path / "Net.search", budget=6) as study:
        first = study.ask()
        assert first is not None
        study.tell(first.number, error="ValueError: no luck")
    with open_study(space(), "Net", storage=tmp_path / "Net.search", budget=6) as study:
        assert first.counts not in counts_of(climb(study))
        failed = study.results.failed
    assert [(t.number, t.error, t.score) for t in failed] == [(0, "ValueError: no luck", None)]
    assert len(study.results.complete) == 5


def test_results_keep_what_was_told_and_described(tmp_path: Path) -> None:
    of = space()
    path = tmp_path / "Net.search"
    with open_study(of, "Net", storage=path, budget=3, describe=lambda c: {"channels": sum(c.values())}) as study:
        asked = study.ask()
        assert asked is not None
        study.tell(asked.number, 0.25, seconds=1.5)
    results = read_searches(path, of.structure)[-1]
    trial = results.candidate(0)
    assert (trial.counts, trial.score, trial.seconds) == (asked.counts, 0.25, 1.5)
    assert trial.notes == {"channels": sum(asked.counts.values())} == asked.notes
    assert trial.shares == pytest.approx({"macs": 0.5}, rel=0.005)
    assert results.key.targets == {"macs": 0.5}


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_the_best_is_the_largest_or_the_smallest_score(direction: Any) -> None:
    with open_study(space(), "Net", budget=4, direction=direction) as study:
        for score in (2.0, 3.0, 1.0, 3.0 if direction == "maximize" else 1.0):
            candidate = study.ask()
            assert candidate is not None
            study.tell(candidate.number, score)
        results = study.results
    assert results.best.number == (1 if direction == "maximize" else 2)
    assert [t.number for t in results.ranked()] == ([1, 3, 0, 2] if direction == "maximize" else [2, 3, 0, 1])


def test_a_loss_leads_where_its_negative_does() -> None:
    with open_study(space(), "Net", budget=30) as study:
        up = counts_of(climb(study))
    with open_study(space(), "Net", budget=30, direction="minimize") as study:
        down = []
        while (candidate := study.ask()) is not None:
            down.append(dict(candidate.counts))
            study.tell(candidate.number, -height(candidate.counts))
    assert down == up


def test_an_index_that_is_no_candidate_is_told_the_numbers() -> None:
    with open_study(space(), "Net", budget=3) as study:
        with pytest.raises(InvalidArgumentError, match=r"Call search\(\)"):
            _ = study.results.best
        study.tell(study.ask().number, error="x")  # type: ignore[union-attr]
        climb(study)
        with pytest.raises(InvalidArgumentError, match=r"with scores are numbered from 1 to 2 \(2 in all"):
            study.results.candidate(7)
        with pytest.raises(InvalidArgumentError, match="that candidate failed"):
            study.results.candidate(0)
        for wrong in (True, "best", 1.5):
            with pytest.raises(InvalidArgumentError, match="index="):
                study.results.candidate(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("score", [float("nan"), float("inf"), None, "good", True])
def test_a_score_that_is_no_number_is_refused_and_the_candidate_stays_open(score: Any) -> None:
    with open_study(space(), "Net", budget=3) as study:
        candidate = study.ask()
        assert candidate is not None
        with pytest.raises(InvalidArgumentError):
            study.tell(candidate.number, score)
        study.tell(candidate.number, 1.0)


def test_a_candidate_is_told_once() -> None:
    with open_study(space(), "Net", budget=3) as study:
        study.tell(study.ask().number, 1.0)  # type: ignore[union-attr]
        for number in (0, 5):
            with pytest.raises(InvalidArgumentError, match=f"no candidate {number}"):
                study.tell(number, 2.0)


@pytest.mark.parametrize("vector", [np.zeros(2), np.full(6, np.nan)])
def test_a_strategy_with_a_wrong_answer_is_named(vector: np.ndarray) -> None:
    class Mine:
        name = "mine"
        guided = False

        def __call__(self, request: Request) -> np.ndarray:
            return vector

    with (
        open_study(space(), "Net", strategy=Mine(), budget=3) as study,
        pytest.raises(InvalidArgumentError, match="strategy 'mine' must return 6 finite numbers"),
    ):
        study.ask()


def test_a_stubborn_strategy_is_helped_out() -> None:
    class Stuck:
        name = "stuck"
        guided = False

        def __call__(self, request: Request) -> np.ndarray:
            return np.full(request.space.dims, 0.5)

    with open_study(space((200, 300, 200)), "Net", strategy=Stuck(), budget=10) as study:
        assert len({tuple(c.counts.values()) for c in climb_flat(study)}) == 10


def climb_flat(study: Any) -> list[Candidate]:
    asked = []
    while (candidate := study.ask()) is not None:
        asked.append(candidate)
        study.tell(candidate.number, 0.0)
    return asked


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"budget": 0}, "budget must be an integer of at least 1"),
        ({"seed": -1}, "seed must be an integer"),
        ({"direction": "up"}, "'maximize' or 'minimize'"),
        ({"options": {"what": object()}}, "plain JSON"),
        ({"options": {"what": float("nan")}}, "plain JSON"),
    ],
)
def test_wrong_arguments_are_named(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words), open_study(space(), "Net", **wrong):
        pass


def test_other_targets_and_options_are_other_searches(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "Net.search"
    searches: list[dict[str, Any]] = [
        {"of": space(), "options": {"weights": "a"}},
        {"of": space(targets={"macs": 0.7}), "options": {"weights": "a"}},
        {"of": space(), "options": {"weights": "b"}},
        {"of": space(), "options": {"weights": "b"}, "direction": "minimize"},
    ]
    with caplog.at_level(logging.INFO):
        for number, search in enumerate(searches, start=1):
            settings = {k: v for k, v in search.items() if k != "of"}
            with open_study(search["of"], "Net", storage=path, budget=number, **settings) as study:
                assert not study.results.trials
                climb(study)
    assert "other weights" in caplog.text
    assert [len(r.trials) for r in read_searches(path, space().structure)] == [1, 2, 3, 4]


def test_another_strategy_goes_on_with_the_same_search(tmp_path: Path) -> None:
    for strategy, budget in (("random", 5), ("evolution", 9)):
        with open_study(space(), "Net", storage=tmp_path / "Net.search", strategy=strategy, budget=budget) as study:
            climb(study)
    assert len(study.results.complete) == 9
