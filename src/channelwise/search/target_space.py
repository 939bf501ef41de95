"""The space of kept counts that meet one or two targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from channelwise.cost import cost_model
from channelwise.errors import SAYS_WHY, InvalidArgumentError, NothingToPruneError, UnreachableTargetError
from channelwise.search.projection import NEAR, Projection
from channelwise.select.budget import TOLERANCE, Words, check_share, kept_shares
from channelwise.select.widths import Widths
from channelwise.structure import Structure, unknown_group

Cost = Callable[[np.ndarray], np.ndarray]
"""Costs of many count vectors at once: (batch, groups) to (batch,). Larger counts must not cost less."""

# Spaces up to this size are listed: what meets the targets is then known exactly.
LISTED = 4096
_NAMES = {"macs": "MACs", "params": "parameters"}


class TargetSpace:
    """Kept counts of all groups that meet one or two targets, and the unit cube that searches move in.

    A *vector* (dims,) in [0, 1] says where between the smallest and the largest allowed width each free group is;
    *counts* (groups,) follow ``structure.groups``. `project` turns any vector into counts that meet the targets.

    Arguments:
        widths: the counts allowed, from ``allowed_widths``. Groups without a choice (excluded ones) are no dimension.
        targets: share of the full cost to keep, by name of the cost: "macs", "params", one of ``costs``, or two.
        costs: further costs by name.
        words: what messages call targets.

    Raises:
        UnreachableTargetError: with the reachable range.
        NothingToPruneError: no group has a choice, and the network as it is does not meet the targets.
        InvalidArgumentError: no target, more than two, or no share in (0, 1].
    """

    def __init__(
        self,
        structure: Structure,
        widths: Widths,
        targets: Mapping[str, float],
        *,
        costs: Mapping[str, Cost] | None = None,
        words: Words = kept_shares,
    ) -> None:
        model = cost_model(structure)
        known: dict[str, Cost] = {"macs": model.macs, "params": model.params, **(costs or {})}
        _check_targets(targets, known)
        self.structure = structure
        self.widths = widths
        self.words = words
        self.targets = {name: float(share) for name, share in targets.items()}
        self.names = model.names
        self._index = np.flatnonzero(widths.free)
        self.free = [self.names[i] for i in self._index]
        self.dims = len(self.free)
        self._low, self._high = widths.low[self._index], widths.high[self._index]
        self._costs = {name: known[name] for name in targets}
        self._full = {name: float(cost(model.full[None])[0]) for name, cost in self._costs.items()}
        self._check_each()
        self._projection = Projection(self._excess, widths)
        self._listed = self._list()
        self._check_together()

    @property
    def sizes(self) -> dict[str, int]:
        """The largest count of every group."""
        return self.structure.full()

    def digest(self) -> str:
        """A fingerprint of the network that the candidates are of."""
        return self.structure.digest()

    def project(self, vector: np.ndarray) -> np.ndarray:
        """Counts (groups,) near a vector (dims,) whose costs are within 0.5 % of every target, or as near as it gets.

        The kept shares move together, by the same step in the logarithm of their odds, until the targets are met; then
        few groups move by single steps. Counts that meet the targets are their own projection.
        """
        wanted = self._wanted(np.clip(np.asarray(vector, float), 0.0, 1.0))
        start = self.widths.nearest(wanted)
        if self._listed is None:
            return self._projection(wanted)
        if (self._listed == start).all(axis=1).any():
            return start
        moved = self._projection.shifted(wanted)
        distance = (np.abs(self._listed - moved) / self.widths.size).sum(axis=1)
        return self._listed[int(np.argmin(distance))]

    def encode(self, counts: np.ndarray | Mapping[str, int]) -> np.ndarray:
        """The vector (dims,) of counts, given in order of the groups or by group name (groups left out are full)."""
        if isinstance(counts, Mapping):
            counts = self._ordered(counts)
        counts = np.asarray(counts)
        if counts.shape != (len(self.names),):
            raise InvalidArgumentError(f"Counts must be {len(self.names)} numbers, one for every group.")
        return np.clip((counts[self._index] - self._low) / (self._high - self._low), 0.0, 1.0)

    def candidate(self, prior: np.ndarray | Sequence[float] | Mapping[str, int]) -> np.ndarray:
        """Counts that meet the targets, from a vector (dims,), counts (groups,) of integers, or counts by name."""
        if isinstance(prior, Mapping):
            return self.project(self.encode(prior))
        array = np.asarray(prior)
        if array.dtype.kind in "iu" and array.shape == (len(self.names),):
            return self.project(self.encode(array))
        if array.dtype.kind == "f" and array.shape == (self.dims,):
            return self.project(array)
        raise InvalidArgumentError(
            f"A candidate is given as counts by group name, as {len(self.names)} integers, or as {self.dims} numbers "
            f"in [0, 1], one for every group with a choice; not as {prior!r}."
        )

    def named(self, counts: np.ndarray) -> dict[str, int]:
        """Counts by group name."""
        return {name: int(n) for name, n in zip(self.names, counts, strict=True)}

    def shares(self, counts: np.ndarray) -> dict[str, float]:
        """The share of every targeted cost that counts (groups,) keep."""
        return {name: float(cost(counts[None])[0]) / self._full[name] for name, cost in self._costs.items()}

    def listed(self) -> np.ndarray | None:
        """All counts that meet the targets, (candidates, groups), if the space is small; None if it is not."""
        return None if self._listed is None else self._listed.copy()

    def _wanted(self, vector: np.ndarray) -> np.ndarray:
        if vector.shape != (self.dims,):
            raise InvalidArgumentError(f"A vector of this space has the shape ({self.dims},), not {vector.shape}.")
        wanted = self.widths.high.astype(float)
        wanted[self._index] = self._low + vector * (self._high - self._low)
        return wanted

    def _ordered(self, counts: Mapping[str, int]) -> np.ndarray:
        for name in counts:
            if name not in self.names:
                raise InvalidArgumentError(unknown_group(self.structure, name, "The candidate"))
        full = self.structure.full()
        return np.array([counts.get(name, full[name]) for name in self.names])

    def _excess(self, counts: np.ndarray) -> np.ndarray:
        """(batch, groups) to (batch, targets): how far each cost is above its target, as a share of the target."""
        shares = [cost(counts) / (self._full[name] * self.targets[name]) for name, cost in self._costs.items()]
        return np.stack(shares, axis=1) - 1.0

    def _check_each(self) -> None:
        ends = np.stack([self.widths.low, self.widths.high])
        for name, cost in self._costs.items():
            target, unit = self.targets[name], _NAMES.get(name, name)
            if self._full[name] == 0:
                raise InvalidArgumentError(f"The model has no {unit} to set a target for.")
            low, high = (float(c) / self._full[name] for c in cost(ends))
            if not self.dims and abs(target - high) > TOLERANCE * target:
                raise NothingToPruneError(
                    "No channel group is left to prune: all are frozen, excluded or at their smallest width. "
                    f"For channels that must stay {SAYS_WHY}."
                )
            if not low * (1 - TOLERANCE) <= target <= high * (1 + TOLERANCE):
                raise UnreachableTargetError(
                    f"{self.words({name: target})} cannot be reached: candidates keep {low:.4f} to {high:.4f} of the "
                    f"{unit}, which is to remove {1 - high:.4f} to {1 - low:.4f}. Ask for a share in this range, "
                    "exclude fewer layers, or lower channel_divisible."
                )

    def _check_together(self) -> None:
        if len(self.targets) < 2:
            return
        first, second = self.targets
        middle = self.project(np.full(self.dims, 0.5))
        if np.abs(self._excess(middle[None])).max() <= TOLERANCE:
            return
        low, high = self._range_of_second()
        if not low * (1 - TOLERANCE) <= self.targets[second] <= high * (1 + TOLERANCE):
            raise UnreachableTargetError(
                f"{self.words(self.targets)} cannot be met together: candidates that keep {self.targets[first]:g} of "
                f"the {_NAMES.get(first, first)} keep about {low:.3f} to {high:.3f} of the "
                f"{_NAMES.get(second, second)}, which is to remove {1 - high:.3f} to {1 - low:.3f}. Ask for a share in "
                "this range."
            )

    def _range_of_second(self) -> tuple[float, float]:
        """About the smallest and largest share of the second cost among candidates that meet the first target."""
        first, second = self.targets
        alone = TargetSpace(self.structure, self.widths, {first: self.targets[first]}, costs=self._costs)
        tilt = self._projection.tilt[self._index]
        found = [alone.project(1 / (1 + np.exp(-weight * tilt))) for weight in np.linspace(-40, 40, 81)]
        shares = self._costs[second](np.stack(found)) / self._full[second]
        return float(shares.min()), float(shares.max())

    def _list(self) -> np.ndarray | None:
        step = self.widths.step[self._index]
        grid = self.widths.grid[self._index]
        ladders = [
            np.unique(np.append(np.arange(low, last + 1, s), high))
            for low, last, high, s in zip(self._low, grid, self._high, step, strict=True)
        ]
        if math.prod(map(len, ladders)) > LISTED:
            return None
        count = math.prod(map(len, ladders))
        everything = np.repeat(self.widths.high[None], count, axis=0)
        if self.dims:
            everything[:, self._index] = np.stack([a.ravel() for a in np.meshgrid(*ladders, indexing="ij")], axis=1)
        distance = np.abs(self._excess(everything)).max(axis=1)
        return everything[distance <= max(NEAR, float(distance.min()) * (1 + 1e-9))]


def _check_targets(targets: Mapping[str, float], known: Mapping[str, Any]) -> None:
    if not 1 <= len(targets) <= 2:
        raise InvalidArgumentError(f"Give one or two targets, such as macs=0.5, not {dict(targets)!r}.")
    for name, share in targets.items():
        if name not in known:
            raise InvalidArgumentError(f"There is no cost {name!r} to set a target for, only {', '.join(known)}.")
        check_share(name, share)
