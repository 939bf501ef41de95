"""The counts nearest to a target: the last step of a budget, in which a few groups move by single steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from channelwise.select.widths import Widths

# Up to this many selections are compared one by one; more are searched by moving one or two groups at a time.
ENUMERATED = 2048
PAIRS = 16
ROUNDS = 4
# A single move of one group, in steps; the moves of wide boxes would be too many.
STRIDE = 4


def nearest_counts(
    evaluate: Callable[[Any], Any], widths: Widths, start: np.ndarray, target: float, near: float = 0.001
) -> np.ndarray:
    """Counts near ``start`` (groups,) whose cost is nearest to ``target``, and not above it where two are equally near.

    First every group may move one step from the start; if nothing within ``near`` (a share) of the target is found,
    two steps, then four, and so on: a coarse divisor must not miss a selection that exists, a fine one must not leave
    the profile.
    """
    if not widths.free.any():
        return start
    counts, reach = start, 1
    lower, upper = widths.below(start), widths.above(start)
    while True:
        box = _Box(evaluate, widths, start, lower, upper, target, min(reach, STRIDE))
        small = box.selections() <= ENUMERATED
        found = box.enumerate() if small else box.search(counts)
        # A search that a wider box does not help has met the grain of the network's widths.
        stuck = not small and reach > 1 and (found == counts).all()
        counts = found
        arrived = abs(float(evaluate(counts)) - target) <= near * target
        if arrived or stuck or ((lower <= widths.low).all() and (upper >= widths.high).all()):
            return counts
        for _ in range(reach):
            lower, upper = widths.below(lower), widths.above(upper)
        reach *= 2


@dataclass(frozen=True)
class _Box:
    """The counts between ``lower`` and ``upper``, and what makes one of them better than another."""

    evaluate: Callable[[Any], Any]
    widths: Widths
    start: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    target: float
    stride: int

    def selections(self) -> int:
        """How many counts there are, or slightly more."""
        each = (self.upper - self.lower) // self.widths.step + 1 + (self.upper > self.widths.grid)
        return math.prod(each[self.lower < self.upper].tolist())

    def enumerate(self) -> np.ndarray:
        """The best of all counts."""
        free = np.flatnonzero(self.lower < self.upper)
        choices = [self._ladder(int(g)) for g in free]
        candidates = np.repeat(self.start[None], math.prod(map(len, choices)), axis=0)
        candidates[:, free] = np.stack([axis.ravel() for axis in np.meshgrid(*choices, indexing="ij")], axis=1)
        return self._best(candidates, self.evaluate(candidates))

    def search(self, counts: np.ndarray) -> np.ndarray:
        """What a few moves of one or two groups make of ``counts``."""
        for _ in range(ROUNDS):
            moved = self._move(counts)
            if (moved == counts).all():
                break
            counts = moved
        return counts

    def _ladder(self, group: int) -> np.ndarray:
        lower, upper = int(self.lower[group]), int(self.upper[group])
        last = min(upper, int(self.widths.grid[group]))
        return np.unique(np.append(np.arange(lower, last + 1, self.widths.step[group]), upper))

    def _move(self, counts: np.ndarray) -> np.ndarray:
        """The best of: staying, moving one group, moving two groups."""
        up, down, reached = counts, counts, []
        for _ in range(self.stride):
            up, down = np.minimum(self.widths.above(up), self.upper), np.maximum(self.widths.below(down), self.lower)
            reached += [up, down]
        values, groups = np.concatenate(reached), np.tile(np.arange(len(counts)), len(reached))
        real = values != np.tile(counts, len(reached))
        values, groups = values[real], groups[real]
        singles = np.repeat(counts[None], len(groups) + 1, axis=0)
        singles[np.arange(len(groups)), groups] = values
        costs = self.evaluate(singles)
        first, second = _pairs(costs[:-1] - costs[-1], groups, self.target - costs[-1])
        pairs = np.repeat(counts[None], len(first), axis=0)
        rows = np.arange(len(first))
        pairs[rows, groups[first]] = values[first]
        pairs[rows, groups[second]] = values[second]
        return self._best(np.concatenate([singles, pairs]), np.concatenate([costs, self.evaluate(pairs)]))

    def _best(self, candidates: np.ndarray, costs: np.ndarray) -> np.ndarray:
        """The row nearest to the target; of equally near ones those not above it, then the one that moves least."""
        distance = np.round(np.abs(costs - self.target) / self.target, 12)
        ties = np.flatnonzero(distance == distance.min())
        moved = np.abs(candidates[ties] - self.start).sum(axis=1)
        return candidates[ties[np.lexsort((moved, costs[ties] > self.target))[0]]]


def _pairs(effect: np.ndarray, groups: np.ndarray, wanted: float) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of moves of different groups whose effects add up to nearly ``wanted``: those worth an exact look."""
    order = np.argsort(effect, kind="stable")
    place = np.searchsorted(effect[order], wanted - effect)
    first = np.tile(np.arange(len(effect)), 4)
    second = order[np.clip(np.concatenate([place + offset for offset in (-2, -1, 0, 1)]), 0, len(effect) - 1)]
    different = groups[first] < groups[second]
    first, second = first[different], second[different]
    best = np.argsort(np.abs(effect[first] + effect[second] - wanted), kind="stable")[:PAIRS]
    return first[best], second[best]
