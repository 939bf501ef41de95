"""Evolution over a window of MACs: mutations and crossovers of the best subnet of every bucket."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np

from channelwise.methods.ofa.front import Front
from channelwise.methods.ofa.window import WindowSpace
from channelwise.search import Request
from channelwise.select.widths import check_count, check_number

_FRONTS: WeakKeyDictionary[WindowSpace, dict[float, Front]] = WeakKeyDictionary()

Mode = Literal["random", "mutate", "crossover"]


@dataclass(frozen=True)
class FrontEvolution:
    """Generations of children whose parents are the best subnets of all MACs (Real et al., 2019; Wang et al., 2021).

    The first ``population`` candidates are evenly scaled networks of all sizes in the window and random ones. Every
    generation after that has ``mutations`` children with one parent, each choice drawn anew with probability
    ``mutate_prob``, and ``crossovers`` with two parents, each choice taken from either. Parents are the subnets that no
    cheaper one beats, and the best of every bucket of ``step`` million MACs.
    """

    population: int = 16
    mutations: int = 8
    mutate_prob: float = 0.2
    crossovers: int = 4
    step: float = 10.0

    name = "ofa-evolution"
    guided = True

    def __post_init__(self) -> None:
        check_count("population", self.population)
        for name in ("mutations", "crossovers"):
            check_count(name, getattr(self, name), least=0)
        check_number("mutate_prob", self.mutate_prob, 0, 1)
        check_number("step", self.step, 0, sys.float_info.max, above=True)

    def mode(self, number: int) -> Mode:
        """How the candidate of that number is made."""
        return self.place(number)[1]

    def place(self, number: int) -> tuple[int, Mode, int]:
        """Where the candidate of that number stands: its generation, how it is made, and its number among those."""
        if number < self.population:
            return 0, "random", number
        generation, child = divmod(number - self.population, max(self.mutations + self.crossovers, 1))
        if child < self.mutations:
            return generation + 1, "mutate", child
        return generation + 1, "crossover", child - self.mutations

    def __call__(self, request: Request) -> np.ndarray:
        """The next vector (dims,)."""
        rng, space = request.rng(), request.space
        mode = self.mode(request.number)
        if mode == "random" or not request.finished:
            return self._founder(request, rng)
        front = self._front(request)
        parents = front.parents()
        child = front.vector(parents[rng.integers(len(parents))])
        alone = mode == "mutate" or len(parents) == 1
        if not alone:
            second = front.vector(parents[rng.integers(len(parents))])
            child = np.where(rng.random(space.dims) < 0.5, child, second)
        if not alone and not request.attempt:
            return child
        share = self.mutate_prob
        if request.attempt:
            # Children that were known already must go further away, twice as far every time.
            share = min(1.0, max(share, 1 / space.dims) * 2.0**request.attempt)
        changed = rng.random(space.dims) < share
        changed[rng.integers(space.dims)] = True
        return np.where(changed, rng.random(space.dims), child)

    def _founder(self, request: Request, rng: np.random.Generator) -> np.ndarray:
        """Evenly scaled networks first, from small to large, then random ones about as large."""
        dims = request.space.dims
        even = max(self.population // 2, 1)
        if request.number < even and not request.attempt:
            return np.full(dims, (request.number + 0.5) / even)
        level = rng.random()
        return np.clip(level + 0.5 * (rng.random(dims) - 0.5), 0.0, 1.0)

    def _front(self, request: Request) -> Front:
        """The parents. Kept between requests of one search, of which every one has a few finished subnets more."""
        space: Any = request.space
        assert isinstance(space, WindowSpace)
        front = _FRONTS.get(space, {}).get(self.step)
        new = request.finished if front is None else front.not_added(request.finished)
        if front is None or len(front) + len(new) != len(request.finished):
            # Of another search in the same space.
            front, new = Front(space, self.step), request.finished
            _FRONTS.setdefault(space, {})[self.step] = front
        for known in new:
            front.add(known)
        return front
