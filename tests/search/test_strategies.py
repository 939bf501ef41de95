"""Strategies answer the same to the same request, stay in the cube, and learn."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import optuna
import pytest
from scipy.stats import norm

from channelwise.errors import InvalidArgumentError
from channelwise.methods.ofa.evolution import FrontEvolution
from channelwise.search import CmaEs, Evolution, Known, OptunaStrategy, RandomSearch, Request, get, names, open_study
from channelwise.search.odds import to_odds
from channelwise.search.surrogate import expectation
from tests.search.searches import climb, height, space

GUIDED = ("cmaes", "evolution", "tpe")


def request(number: int = 30, *, seed: int = 0, attempt: int = 0, running: int = 0) -> Request:
    of = space()
    rng = np.random.default_rng(7)
    counts = [of.project(rng.random(of.dims)) for _ in range(number)]
    known = [Known(i, of.encode(c), height(of.named(c))) for i, c in enumerate(counts)]
    late = [Known(k.number, k.vector) for k in known[number - running :]]
    return Request(of, tuple(known[: number - running]), tuple(late), np.empty((0, of.dims)), number, seed, attempt)


@pytest.mark.parametrize("name", names())
def test_the_same_request_gets_the_same_answer(name: str) -> None:
    assert (get(name)(request(running=2)) == get(name)(request(running=2))).all()


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("other", [{"number": 31}, {"seed": 1}, {"attempt": 1}])
def test_another_number_seed_or_attempt_gets_another_answer(name: str, other: dict[str, int]) -> None:
    assert (get(name)(request()) != get(name)(request(**other))).any()


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("number", [0, 1, 30])
def test_answers_lie_in_the_cube(name: str, number: int) -> None:
    answer = get(name)(request(number))
    assert answer.shape == (6,)
    assert ((answer >= 0) & (answer <= 1)).all()


@pytest.mark.parametrize("name", names())
def test_a_single_group_is_enough(name: str) -> None:
    of = space((16,))
    answer = get(name)(Request(of, (), (), np.empty((0, 1)), 0, 0))
    assert answer.shape == (1,)


@pytest.mark.parametrize("name", GUIDED)
def test_guided_strategies_beat_random(name: str) -> None:
    def best(strategy: str, seed: int) -> float:
        with open_study(space(), "Net", strategy=strategy, seed=seed, budget=60) as study:
            climb(study)
            return float(study.results.best.score or 0.0)

    assert np.median([best(name, s) for s in range(3)]) > np.median([best("random", s) for s in range(3)]) + 0.005


def test_children_of_evolution_come_from_the_best() -> None:
    asked = request(60)
    best = asked.finished[int(np.argmax(asked.merits()))].vector
    strategy = Evolution(parents=1, crossover=0.0, first=0.01, last=0.01, explore=0.0)
    assert np.abs(strategy(asked) - best).max() < 0.05


def test_mutations_of_evolution_become_smaller() -> None:
    strategy = Evolution(parents=1, crossover=0.0, explore=0.0, mutated=1.0, first=0.8, last=0.2)
    vector = np.full(6, 0.5)

    def spread(number: int) -> float:
        moves = []
        for seed in range(40):
            known = (Known(0, vector, 1.0),)
            moves.append(strategy(Request(space(), known, (), np.empty((0, 6)), number, seed, budget=100)) - vector)
        return float(np.std(moves))

    assert spread(2) > 1.5 * spread(99)


def test_cmaes_starts_at_the_best_prior_and_moves_with_generations() -> None:
    asked = request(0)
    priors = np.stack([asked.space.encode(asked.space.project(np.full(6, share))) for share in (0.3, 0.6)])
    scored = tuple(Known(i, prior, float(i)) for i, prior in enumerate(priors))
    still = CmaEs(sigma=1e-3, population=4)
    start = still(Request(asked.space, scored, (), priors, 2, 0))
    assert np.abs(start - priors[1]).max() < 0.02
    far = [Known(2 + i, np.full(6, 0.9), 5.0 + i) for i in range(4)]
    moved = still(Request(asked.space, (*scored, *far), (), priors, 6, 0))
    assert np.abs(moved - priors[1]).max() > 0.1


def test_unknown_strategies_are_told_the_known_ones() -> None:
    for wrong in ("annealing", 3, Evolution):
        with pytest.raises(InvalidArgumentError, match="cmaes, evolution, random, tpe"):
            get(wrong)


def test_objects_are_accepted() -> None:
    mine = RandomSearch()
    assert get(mine) is mine


def test_an_optuna_sampler_is_a_strategy() -> None:
    sampler = optuna.samplers.TPESampler(seed=0)
    with open_study(space(), "Net", strategy=sampler, budget=15) as study:
        assert len(climb(study)) == 15


def test_a_sampler_that_keeps_pickles_is_refused_by_name() -> None:
    with (
        open_study(space(), "Net", strategy=optuna.samplers.CmaEsSampler(seed=0), budget=15) as study,
        pytest.raises(InvalidArgumentError, match="strategy='cmaes'"),
    ):
        climb(study)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -(10**9), "8", None, [1]])
@pytest.mark.parametrize(
    ("kind", "name"), [(kind, field.name) for kind in (CmaEs, Evolution, FrontEvolution) for field in fields(kind)]
)
def test_what_is_no_setting_of_a_strategy_is_refused_by_its_name(kind: Any, name: str, wrong: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=rf"^{name}\b.* must be "):
        kind(**{name: wrong})


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (CmaEs, {"population": 10**9}), (CmaEs, {"population": 3}), (CmaEs, {"population": -1}), (CmaEs, {"sigma": 0}),
        (Evolution, {"parents": 0}), (Evolution, {"children": 10**9}), (Evolution, {"crossover": 1.5}),
        (Evolution, {"first": 0.1, "last": 0.2}), (Evolution, {"last": 0.0}), (Evolution, {"explore": True}),
        (FrontEvolution, {"population": 0}), (FrontEvolution, {"mutations": 2.5}), (FrontEvolution, {"step": 0}),
        (OptunaStrategy, {"sampler": 5}), (OptunaStrategy, {"sampler": optuna.samplers.RandomSampler()}),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(kind: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match=rf"^{list(wrong)[-1]} must be "):
        kind(**wrong)


@pytest.mark.parametrize("separable", [True, False])
@pytest.mark.filterwarnings("error")
def test_the_smallest_population_of_cmaes_works(separable: bool) -> None:
    with open_study(space(), "Net", strategy=CmaEs(population=4, separable=separable), budget=20) as study:
        assert len(climb(study)) == 20


def test_optuna_stays_as_talkative_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.INFO)
    try:
        with open_study(space(), "Net", strategy="tpe", budget=12) as study:
            climb(study)
        assert optuna.logging.get_verbosity() == optuna.logging.INFO
    finally:
        optuna.logging.set_verbosity(before)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def test_more_is_expected_near_better_candidates_and_less_is_known_far_away() -> None:
    points = np.random.default_rng(0).normal(size=(40, 5))
    merits = -np.abs(points[:, 0] - points[:, 1] - 1.0)
    asked = np.array([[1.0, 0.0, 0.0, 0.0, 0.0], [-1.5, 1.5, 0.0, 0.0, 0.0], [5.0, -5.0, 5.0, -5.0, 0.0]])
    expected, deviation = expectation(points, merits, asked)
    assert expected[0] > expected[1] + 0.5
    assert deviation[:2].max() < deviation[2] == pytest.approx(1.0)


def test_expectations_are_those_of_a_gaussian_process() -> None:
    rng = np.random.default_rng(0)
    points, asked, merits = rng.normal(size=(30, 4)), rng.normal(size=(7, 4)), rng.normal(size=30)

    def kernel(one: np.ndarray, two: np.ndarray) -> np.ndarray:
        one, two = (p - p.mean(axis=1, keepdims=True) for p in (one, two))
        return np.exp(-((one[:, None] - two[None]) ** 2).sum(axis=2) / (2 * 0.5**2 * 4))

    inverse = np.linalg.inv(kernel(points, points) + 0.15 * np.eye(30))
    quantiles = norm.ppf((np.argsort(np.argsort(merits)) + 0.5) / 30)
    across = kernel(asked, points)
    expected, deviation = expectation(points, merits, asked)
    assert expected == pytest.approx(across @ inverse @ quantiles)
    assert deviation**2 == pytest.approx(1 - np.diag(across @ inverse @ across.T))


def test_many_scores_are_thinned_out_to_the_best_and_the_latest() -> None:
    points = np.random.default_rng(0).normal(size=(1000, 3))
    merits = np.arange(1000.0) % 700
    expected, _ = expectation(points, merits, points)
    assert np.corrcoef(expected[600:700], merits[600:700])[0, 1] > 0
    assert np.isfinite(expected).all()


def test_evolution_evaluates_the_most_promising_of_its_children() -> None:
    asked = request(60)

    def expected(children: int) -> float:
        strategy = Evolution(children=children, explore=0.0)
        vectors = [strategy(replace(asked, seed=seed)) for seed in range(20)]
        return float(expectation(asked.odds(), asked.merits(), to_odds(np.stack(vectors)))[0].mean())

    assert expected(32) > expected(1) + 0.2
