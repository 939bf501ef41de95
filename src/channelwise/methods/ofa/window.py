"""Subnets inside a window of MACs, as the space that searches move in."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from channelwise.errors import InvalidArgumentError, UnreachableTargetError
from channelwise.methods.ofa.space import SearchSpace

# Spaces up to this size are listed: what lies in the window is then known exactly.
LISTED = 4096
# So many ways from the outside into the window are tried; then a subnet known to be inside is taken.
ATTEMPTS = 8


class WindowSpace:
    """The subnets with ``low`` to ``high`` MACs, a `channelwise.search.Space`.

    A *vector* (dims,) in [0, 1] says for every free choice where among its candidates it is; `project` turns any vector
    into *values* (choices,) inside the window.

    Arguments:
        unit: what the user calls ``low`` and ``high``: "flops" or "macs".

    Raises:
        UnreachableTargetError: no subnet lies in the window; with the range that can be reached, or the nearest subnet.
    """

    def __init__(self, space: SearchSpace, low: float, high: float, unit: str = "flops") -> None:
        self.space = space
        self.low, self.high, self._unit = low, high, unit
        self.names = space.names
        self.free = [space.names[i] for i in space.free]
        self.dims = len(self.free)
        self.sizes = {name: int(n) for name, n in zip(space.names, space.full, strict=True)}
        full = float(space.macs(space.full))
        self.targets = {"macs from": low / full, "macs to": high / full}
        self._full = full
        self._index = space.free
        self._ladders = [np.array(space.choices[i].candidates) for i in space.free]
        self._listed = self._list()
        self._places = np.empty((0, self.dims)) if self._listed is None else self._positions(self._listed)
        self._inside = self._any_inside()

    def digest(self) -> str:
        """A fingerprint of the supernet."""
        return self.space.digest()

    def contains(self, values: np.ndarray) -> bool:
        """Whether values (choices,) lie in the window."""
        return bool(self.low <= self.space.macs(values) <= self.high)

    def project(self, vector: np.ndarray) -> np.ndarray:
        """Values (choices,) near a vector (dims,): single steps of single choices until they are in the window.

        The steps are in an order that is random, but always the same for the same values.
        """
        start = self.snapped(np.asarray(vector, float)[None])[0]
        if self.contains(start):
            return start
        if self._listed is not None:
            far = np.abs(self._places - self._positions(start[None])).sum(axis=1)
            return self._listed[int(np.argmin(far))]
        rng = np.random.default_rng(np.frombuffer(hashlib.sha256(start.tobytes()).digest()[:16], np.uint32))
        for _ in range(ATTEMPTS):
            found = self._walked(start, rng)
            if found is not None:
                return found
        return self._inside

    def encode(self, values: np.ndarray | Mapping[str, int]) -> np.ndarray:
        """The vector (dims,) of values, given in order or by name."""
        if isinstance(values, Mapping):
            values = np.array([values[name] for name in self.names], int)
        return self._positions(np.asarray(values)[None])[0]

    def candidate(self, prior: np.ndarray | Sequence[float] | Mapping[str, int]) -> np.ndarray:
        """Values in the window from a vector (dims,), or from values."""
        array = self.encode(prior) if isinstance(prior, Mapping) else np.asarray(prior, float)
        if array.shape != (self.dims,):
            raise InvalidArgumentError(f"A subnet is given as values by name or as {self.dims} numbers in [0, 1].")
        return self.project(array)

    def named(self, values: np.ndarray) -> dict[str, int]:
        """Values by name of the choice."""
        return {name: int(n) for name, n in zip(self.names, values, strict=True)}

    def values(self, named: Mapping[str, int]) -> np.ndarray:
        """The inverse of `named`."""
        return np.array([named[name] for name in self.names], int)

    def shares(self, values: np.ndarray) -> dict[str, float]:
        """The share of the full network's MACs."""
        return {"macs": float(self.space.macs(values)) / self._full}

    def listed(self) -> np.ndarray | None:
        """All subnets in the window (subnets, choices), if the space is small; else None."""
        return None if self._listed is None else self._listed.copy()

    def snapped(self, vectors: np.ndarray) -> np.ndarray:
        """The nearest candidates (subnets, choices) of vectors (subnets, dims), wherever their MACs are."""
        values = np.repeat(self.space.maximum[None], len(vectors), axis=0)
        for column, (i, ladder) in enumerate(zip(self._index, self._ladders, strict=True)):
            places = np.floor(np.clip(vectors[:, column], 0.0, 1.0) * (len(ladder) - 1) + 0.5).astype(int)
            values[:, i] = ladder[places]
        return values

    def _positions(self, values: np.ndarray) -> np.ndarray:
        """(subnets, choices) to vectors (subnets, dims)."""
        columns = [
            np.searchsorted(ladder, values[:, i]) / (len(ladder) - 1)
            for i, ladder in zip(self._index, self._ladders, strict=True)
        ]
        return np.stack(columns, axis=1)

    def _walked(self, start: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
        """The first subnet in the window on a random path of single steps towards it; None if it steps over it."""
        down = self.space.macs(start) > self.high
        steps = []
        for i, ladder in zip(self._index, self._ladders, strict=True):
            place = int(np.searchsorted(ladder, start[i]))
            steps += [i] * (place if down else len(ladder) - 1 - place)
        order = rng.permutation(steps)
        path = np.repeat(start[None], len(order) + 1, axis=0)
        for i, ladder in zip(self._index, self._ladders, strict=True):
            taken = np.cumsum(np.concatenate([[0], order == i]))
            place = int(np.searchsorted(ladder, start[i]))
            path[:, i] = ladder[place - taken if down else place + taken]
        macs = self.space.macs(path)
        inside = np.flatnonzero((macs >= self.low) & (macs <= self.high))
        return path[inside[0]] if len(inside) else None

    def _list(self) -> np.ndarray | None:
        count = math.prod(map(len, self._ladders))
        if count > LISTED:
            return None
        everything = np.repeat(self.space.maximum[None], count, axis=0)
        if self.dims:
            grids = np.meshgrid(*self._ladders, indexing="ij")
            everything[:, self._index] = np.stack([grid.ravel() for grid in grids], axis=1)
        macs = self.space.macs(everything)
        inside = (macs >= self.low) & (macs <= self.high)
        if not inside.any():
            raise self._nothing(float(macs[int(np.argmin(np.abs(macs - (self.low + self.high) / 2)))]))
        return everything[inside]

    def _any_inside(self) -> np.ndarray:
        if self._listed is not None:
            return self._listed[0]
        ends = [self.space.minimum, self.space.maximum]
        for values in ends:
            if self.contains(values):
                return values
        least, most = (float(self.space.macs(values)) for values in ends)
        if self.high < least or self.low > most:
            raise self._nothing(least if self.high < least else most)
        rng = np.random.default_rng(0)
        for attempt in range(8 * ATTEMPTS):
            found = self._walked(ends[attempt % 2], rng)
            if found is not None:
                return found
        for _ in range(4 * ATTEMPTS):
            values = self._approached(self.snapped(rng.random((1, self.dims)))[0])
            if self.contains(values):
                return values
        raise self._nothing(float(self.space.macs(values)))

    def _approached(self, values: np.ndarray) -> np.ndarray:
        """As near to the middle of the window as the best single steps and pairs of steps lead."""
        middle = (self.low + self.high) / 2
        while not self.contains(values):
            single = self._neighbours(values)
            around = np.concatenate([single, *(self._neighbours(one) for one in single)])
            far = np.abs(self.space.macs(around) - middle)
            best = int(np.argmin(far))
            if far[best] >= abs(float(self.space.macs(values)) - middle):
                break
            values = around[best]
        return values

    def _neighbours(self, values: np.ndarray) -> np.ndarray:
        """Values (subnets, choices) that are one step of one choice away."""
        found = []
        for i, ladder in zip(self._index, self._ladders, strict=True):
            place = int(np.searchsorted(ladder, values[i]))
            for other in (place - 1, place + 1):
                if 0 <= other < len(ladder):
                    found.append(values.copy())
                    found[-1][i] = ladder[other]
        return np.stack(found)

    def _nothing(self, nearest: float) -> UnreachableTargetError:
        low, high = (float(self.space.macs(v)) / 1e6 for v in (self.space.minimum, self.space.maximum))
        asked = f"min_{self._unit}={self.low / 1e6:g} to max_{self._unit}={self.high / 1e6:g}"
        return UnreachableTargetError(
            f"No subnet was found with {asked} million MACs: subnets have {low:.4g} to {high:.4g} million, and the "
            f"nearest about {nearest / 1e6:.4g}. Widen the window, or build the supernet with more expand_ratio "
            "values or a smaller channel_divisible."
        )


def buckets(macs: Any, step: float) -> np.ndarray:
    """The multiple of ``step`` million MACs that is nearest."""
    return np.asarray(np.floor(np.asarray(macs) / 1e6 / step + 0.5)).astype(int)


def bucket_name(bucket: int, step: float) -> str:
    """The MACs of a bucket in millions: "230", or "1.85" if steps are smaller than a million."""
    return f"{bucket * step:.10g}"
