"""Evolution over a window of MACs: mutations and crossovers of the best subnet of every bucket."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from channelwise.methods.ofa.window import WindowSpace, buckets
from channelwise.search import Request

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
        parents = self._parents(request)
        first = parents[rng.integers(len(parents))]
        if mode == "mutate" or len(parents) == 1:
            # Mutations that were known already must go further away.
            changed = rng.random(space.dims) < min(1.0, self.mutate_prob * 1.2**request.attempt)
            changed[rng.integers(space.dims)] = True
            return np.where(changed, rng.random(space.dims), first)
        second = parents[rng.integers(len(parents))]
        child = np.where(rng.random(space.dims) < 0.5, first, second)
        if request.attempt:
            child[rng.integers(space.dims)] = rng.random()
        return child

    def _founder(self, request: Request, rng: np.random.Generator) -> np.ndarray:
        """Evenly scaled networks first, from small to large, then random ones about as large."""
        dims = request.space.dims
        even = max(self.population // 2, 1)
        if request.number < even and not request.attempt:
            return np.full(dims, (request.number + 0.5) / even)
        level = rng.random()
        return np.clip(level + 0.5 * (rng.random(dims) - 0.5), 0.0, 1.0)

    def _parents(self, request: Request) -> np.ndarray:
        space: Any = request.space
        assert isinstance(space, WindowSpace)
        vectors = np.stack([known.vector for known in request.finished])
        merits = request.merits()
        macs = space.space.macs(space.snapped(vectors))
        bucket = buckets(macs, self.step)
        best = {int(b): max(np.flatnonzero(bucket == b), key=lambda i: merits[i]) for b in np.unique(bucket)}
        order = np.lexsort((-merits, macs))
        front = [i for n, i in enumerate(order) if merits[i] >= merits[order[: n + 1]].max()]
        return vectors[sorted({*best.values(), *front})]
