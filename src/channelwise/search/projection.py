"""From wanted widths to allowed counts that meet one or two targets, as near to the wanted ones as they can be."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from channelwise.select.nearest import nearest_counts
from channelwise.select.widths import Widths

NEAR = 0.005
"""What is promised, as a share of the target; where the widths are too coarse for it, the nearest counts are found."""
# How near counts shall come: candidates should not differ in what they are allowed to cost.
GOAL = 0.001
MOVES = 6
PAIRS = 48
STRIDES = 3
# Beyond this shift of the log-odds every group is at an end of its range.
FURTHEST = 20.0
EDGE = 1e-3
TOWARDS_MIDDLE = (0.2, 0.4, 0.6, 0.8, 1.0)


class Projection:
    """Moves wanted counts onto the targets.

    ``excess`` gives (batch, targets) relative costs above the targets for (batch, groups) counts.
    """

    def __init__(self, excess: Callable[[np.ndarray], np.ndarray], widths: Widths) -> None:
        self._excess = excess
        self._widths = widths
        self._free = np.flatnonzero(widths.free)
        self._targets = excess(widths.high[None]).shape[1]
        self.tilt = self._tilt() if self._targets == 2 else np.zeros(len(widths.size))
        self._points, self._zoom, self._rounds = _grid(self._targets)

    def __call__(self, wanted: np.ndarray) -> np.ndarray:
        """Allowed counts (groups,) nearest to the targets, from wanted ones that may be fractions."""
        start = self._widths.nearest(wanted)
        if self._distance(start[None])[0] <= NEAR or not len(self._free):
            return start
        counts = self._nearest(self.shifted(wanted))
        if self._targets > 1 and self._distance(counts[None])[0] > NEAR:
            counts = self._towards_middle(wanted, counts)
        if self._targets == 1 and self._distance(counts[None])[0] > NEAR:
            # A coarse divisor: only moves over many steps reach the target.
            counts = nearest_counts(lambda c: _scalar(self._excess, c), self._widths, counts, 1.0, NEAR)
        return counts

    def _towards_middle(self, wanted: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """A common shift cannot meet two targets from everywhere: the wanted counts move, no more than they must."""
        middle = (self._widths.low + self._widths.high) / 2
        tried = [counts]
        for share in TOWARDS_MIDDLE:
            tried.append(self._nearest(self.shifted(wanted + share * (middle - wanted))))
            if self._distance(tried[-1][None])[0] <= NEAR:
                return tried[-1]
        return tried[int(np.argmin(self._distance(np.stack(tried))))]

    def shifted(self, wanted: np.ndarray) -> np.ndarray:
        """Counts near the targets, by the same step of all log-odds between the ends of the ranges."""
        widths, free = self._widths, self._free
        if not len(free):
            return widths.high
        low, span = widths.low[free], (widths.high - widths.low)[free]
        share = np.clip((wanted[free] - low) / span, EDGE, 1 - EDGE)
        odds = np.log(share / (1 - share))
        directions = np.stack([np.ones(len(free)), self.tilt[free]])[: self._targets]
        centre, half = np.zeros(self._targets), FURTHEST
        best = widths.nearest(wanted)
        for _ in range(self._rounds):
            points = centre + half * self._points
            counts = np.repeat(widths.high[None].astype(float), len(points), axis=0)
            counts[:, free] = low + span / (1 + np.exp(-(odds + points @ directions)))
            allowed = widths.nearest(counts)
            found = int(np.lexsort((np.abs(points).sum(axis=1), self._distance(allowed)))[0])
            centre, best, half = points[found], allowed[found], half * self._zoom
        return best

    def _distance(self, counts: np.ndarray) -> np.ndarray:
        return np.abs(self._excess(counts)).max(axis=1)

    def _nearest(self, counts: np.ndarray) -> np.ndarray:
        """``counts`` after the best moves of one or two groups by few steps."""
        for _ in range(MOVES):
            here = self._excess(counts[None])[0]
            if np.abs(here).max() <= GOAL:
                break
            moved = self._moves(counts)
            effect = self._excess(moved) - here
            groups = (moved != counts).argmax(axis=1)
            first, second = _pairs(here, effect, groups)
            both = moved[first] + moved[second] - counts
            everything = np.concatenate([counts[None], moved, both])
            distance = self._distance(everything)
            best = int(np.argmin(distance))
            if distance[best] >= distance[0] - 1e-12:
                break
            counts = everything[best]
        return counts

    def _moves(self, counts: np.ndarray) -> np.ndarray:
        """(moves, groups): one group at a time by one, two, … steps up or down."""
        rows = []
        up = down = counts
        for _ in range(STRIDES):
            up, down = self._widths.above(up), self._widths.below(down)
            for reached in (up, down):
                changed = np.flatnonzero(reached != counts)
                block = np.repeat(counts[None], len(changed), axis=0)
                block[np.arange(len(changed)), changed] = reached[changed]
                rows.append(block)
        return np.unique(np.concatenate(rows), axis=0)

    def _tilt(self) -> np.ndarray:
        """(groups,) in [-1, 1]: whether a group weighs more in the second cost than in the first."""
        middle = self._widths.nearest((self._widths.low + self._widths.high) / 2)
        base = self._excess(middle[None])[0] + 1
        tilt = np.zeros(len(middle))
        for group in self._free:
            ends = np.repeat(middle[None], 2, axis=0)
            ends[:, group] = self._widths.low[group], self._widths.high[group]
            rise = (np.diff(self._excess(ends), axis=0)[0] / base).clip(1e-12)
            tilt[group] = (rise[1] - rise[0]) / (rise[1] + rise[0])
        tilt[self._free] -= tilt[self._free].mean()
        return tilt


def _grid(targets: int) -> tuple[np.ndarray, float, int]:
    """Points of a grid over [-1, 1] for every target, by how much the next one is smaller, and how many to take."""
    side = {1: 65, 2: 17}[targets]
    axis = np.linspace(-1, 1, side)
    return np.array(list(itertools.product(*[axis] * targets))), 4 / (side - 1), {1: 4, 2: 7}[targets]


def _pairs(here: np.ndarray, effect: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of moves of different groups that together come nearest to the targets, were their effects to add up."""
    together = np.abs(here + effect[:, None] + effect[None]).max(axis=2)
    together[groups[:, None] >= groups[None]] = np.inf
    number = min(PAIRS, together.size)
    best = np.argpartition(together, number - 1, axis=None)[:number]
    first, second = np.unravel_index(np.sort(best), together.shape)
    real = np.isfinite(together[first, second])
    return first[real], second[real]


def _scalar(excess: Callable[[np.ndarray], np.ndarray], counts: np.ndarray) -> np.ndarray | float:
    """The first cost as a share of its target, for one or many count vectors."""
    cost = excess(np.atleast_2d(counts))[:, 0] + 1
    return cost if np.ndim(counts) == 2 else cost[0]
