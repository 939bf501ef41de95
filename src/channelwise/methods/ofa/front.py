"""The parents of an evolution over all sizes, kept up to date one finished subnet at a time."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from itertools import filterfalse

import numpy as np

from channelwise.methods.ofa.window import WindowSpace, buckets
from channelwise.search.strategy import Known

Place = tuple[float, float, int]
"""MACs, the merit turned so that smaller is better, and the number: the order in which subnets beat later ones."""


class Front:
    """Of the finished subnets those that no cheaper one beats, and the best of every bucket of ``step`` million MACs.

    A search of thousands asks thousands of times for its parents: adding a subnet takes the same time whatever there is
    already, but for the parents that it beats.
    """

    def __init__(self, space: WindowSpace, step: float) -> None:
        self._space, self._step = space, step
        self._known: dict[int, Known] = {}
        self._added: set[Known] = set()
        # Merits do not fall along it.
        self._unbeaten: list[Place] = []
        self._best: dict[int, Place] = {}

    def __len__(self) -> int:
        return len(self._known)

    def not_added(self, finished: Sequence[Known]) -> list[Known]:
        """Those that have not been added yet."""
        return list(filterfalse(self._added.__contains__, finished))

    def add(self, known: Known) -> None:
        """Take a finished subnet into account."""
        assert known.merit is not None
        self._known[known.number] = known
        self._added.add(known)
        macs = float(self._space.space.macs(self._space.snapped(known.vector[None])[0]))
        place = (macs, -known.merit, known.number)
        bucket = int(buckets(macs, self._step))
        best = self._best.get(bucket)
        if best is None or place[1:] < best[1:]:
            self._best[bucket] = place
        at = bisect_left(self._unbeaten, place)
        if at and self._unbeaten[at - 1][1] < place[1]:
            return
        beaten = at
        while beaten < len(self._unbeaten) and self._unbeaten[beaten][1] > place[1]:
            beaten += 1
        del self._unbeaten[at:beaten]
        insort(self._unbeaten, place)

    def parents(self) -> list[int]:
        """Their numbers, in order."""
        return sorted({number for *_, number in (*self._unbeaten, *self._best.values())})

    def vector(self, number: int) -> np.ndarray:
        """The vector (dims,) of a subnet."""
        return self._known[number].vector
