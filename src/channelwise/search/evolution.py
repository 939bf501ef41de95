"""Evolution: the best candidates have children, and the most promising child is evaluated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from channelwise.search.odds import from_odds, to_odds
from channelwise.search.strategy import FARTHEST, MOST, Request
from channelwise.search.surrogate import expectation
from channelwise.select.widths import check_count, check_number

# Fewer scores say nothing about children.
LEARNED = 8


@dataclass(frozen=True)
class Evolution:
    """A steady-state genetic search in the log-odds of the kept shares (real-valued, elitist, one child at a time).

    A model of the scores so far chooses among several children: by the score that it expects, and some more where it
    is unsure.

    Arguments:
        parents: how many of the best candidates have children; better ones have more.
        children: how many are made for every one that is evaluated; 1 does without the model.
        crossover: the probability that a child has two parents. Every group is taken from one of them or, as likely,
            lies between them.
        first, last: standard deviation of mutations at the begin and at the end of the search, in log-odds.
        mutated: the share of groups that a mutation changes, at least one.
        explore: the share of candidates that are drawn anew around a prior (or evenly if there are none).
        optimism: how many of the model's standard deviations count in favour of a child.

    Raises:
        InvalidArgumentError: naming an argument that is no number in its range.
    """

    parents: int = 8
    children: int = 32
    crossover: float = 0.5
    first: float = 0.6
    last: float = 0.3
    mutated: float = 0.5
    explore: float = 0.05
    optimism: float = 0.5

    name = "evolution"
    guided = True

    def __post_init__(self) -> None:
        for name in ("parents", "children"):
            check_count(name, getattr(self, name), most=MOST)
        for name in ("crossover", "mutated", "explore"):
            check_number(name, getattr(self, name), 0, 1)
        check_number("first", self.first, 0, FARTHEST, above=True)
        check_number("last", self.last, 0, self.first, above=True)
        check_number("optimism", self.optimism, -FARTHEST, FARTHEST)

    def __call__(self, request: Request) -> np.ndarray:
        """The next vector (dims,)."""
        rng = request.rng()
        if not request.finished or rng.random() < self.explore:
            return self._anew(request, rng)
        progress = min(request.number / max(request.budget - 1, 1), 1.0)
        # Children that were known already must go further away.
        sigma = self.first * (self.last / self.first) ** progress * 1.2**request.attempt
        merits, odds = request.merits(), request.odds()
        best = odds[np.argsort(-merits, kind="stable")[: self.parents]]
        if self.children == 1 or len(merits) < LEARNED:
            return from_odds(self._child(best, sigma, rng))
        children = np.stack([self._child(best, sigma, rng) for _ in range(self.children)])
        expected, deviation = expectation(odds, merits, children)
        return from_odds(children[int(np.argmax(expected + self.optimism * deviation))])

    def _anew(self, request: Request, rng: np.random.Generator) -> np.ndarray:
        if not len(request.priors):
            return rng.random(request.space.dims)
        prior = to_odds(request.priors[rng.integers(len(request.priors))])
        return from_odds(prior + rng.normal(0.0, self.first, request.space.dims))

    def _child(self, best: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
        """Log-odds (dims,) from those of the parents (parents, dims), the best first."""
        child = self._bred(best, rng)
        changed = rng.random(len(child)) < self.mutated
        changed[rng.integers(len(child))] = True
        return child + changed * rng.normal(0.0, sigma, len(child))

    def _bred(self, best: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        weight = np.arange(len(best), 0, -1.0)
        weight /= weight.sum()
        if len(best) < 2 or rng.random() >= self.crossover:
            return best[rng.choice(len(best), p=weight)]
        one, two = best[rng.choice(len(best), size=2, replace=False, p=weight)]
        if rng.random() < 0.5:
            return np.where(rng.random(len(one)) < 0.5, one, two)
        return one + rng.random() * (two - one)
