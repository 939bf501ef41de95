"""MACs and parameters of any kept counts, compiled once into arrays so that a budget search is arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from channelwise.errors import InvalidArgumentError
from channelwise.once import once_each
from channelwise.structure import Size, Structure
from channelwise.surgery.counts import Lengths

Array = np.ndarray


class Products:
    """A sum of ``scale * prod(sizes)`` over many terms, evaluated for one or many count vectors at once."""

    def __init__(self, terms: Sequence[tuple[float, Sequence[Size]]], position: Mapping[str, int]) -> None:
        rows: dict[Size, int] = {}
        scales, factors = [], []
        for scale, sizes in terms:
            varying = [s for s in sizes if s.terms]
            for size in sizes:
                if not size.terms:
                    scale *= round(size.constant)
            scales.append(float(scale))
            factors.append([rows.setdefault(s, len(rows)) for s in varying])
        self._lengths = Lengths(list(rows), list(position))
        self._scale = np.asarray(scales, float)
        # Row len(rows) of the evaluated sizes is the constant 1 that pads terms with fewer factors than the widest.
        width = max(map(len, factors), default=0)
        self._factors = np.full((width, len(factors)), len(rows), int)
        for term, used in enumerate(factors):
            self._factors[: len(used), term] = used

    def __call__(self, counts: Array) -> Array:
        """(groups,) or (batch, groups) kept counts to a 0-d or (batch,) total."""
        batch = np.atleast_2d(np.asarray(counts, float)).T
        sizes = np.vstack([self._lengths(batch), np.ones((1, batch.shape[1]))])
        product = np.broadcast_to(self._scale[:, None], (len(self._scale), batch.shape[1]))
        for factor in self._factors:
            product = product * sizes[factor]
        total = product.sum(axis=0)
        return total if np.ndim(counts) == 2 else total[0]


class CostModel:
    """Costs of count vectors whose entries follow ``structure.groups``.

    A vector of shape (groups,) gives a number; an array of shape (batch, groups) gives an array of shape (batch,).
    MACs are those of convolutions and matrix products for one sample. Parameters exclude buffers and count a tensor
    that is shared or blocked once.
    """

    def __init__(self, structure: Structure) -> None:
        self.names = tuple(g.name for g in structure.groups)
        position = {name: i for i, name in enumerate(self.names)}
        self.full = np.asarray([g.size for g in structure.groups], int)
        self._macs = Products([(t.scale, t.factors) for t in structure.macs], position)
        self._params = Products(
            [(1.0, structure.tensor_sizes[t.name]) for t in structure.tensors.values() if t.is_parameter], position
        )

    def macs(self, counts: Array) -> Any:
        """Multiply-accumulates for one sample."""
        return self._macs(counts)

    def params(self, counts: Array) -> Any:
        """Number of parameter elements."""
        return self._params(counts)

    def cost(self, kind: str) -> Callable[[Array], Any]:
        """The function for ``kind``, "macs" or "params"."""
        if kind not in ("macs", "params"):
            raise InvalidArgumentError(f"cost must be 'macs' or 'params', not {kind!r}.")
        return self.macs if kind == "macs" else self.params

    def vector(self, kept: Mapping[str, int]) -> Array:
        """Kept counts by group name as a vector; every group must be present."""
        missing = [name for name in self.names if name not in kept]
        if missing:
            raise InvalidArgumentError(f"No kept count is given for the group {missing[0]!r} ({len(missing)} missing).")
        if len(kept) > len(self.names):
            unknown = next(name for name in kept if name not in set(self.names))
            raise InvalidArgumentError(f"{unknown!r} is not a channel group of this model.")
        return np.asarray([kept[name] for name in self.names], int)


@once_each
def cost_model(structure: Structure) -> CostModel:
    """The compiled costs of ``structure``, built at the first call and kept as long as the structure lives."""
    return CostModel(structure)


def macs(structure: Structure, kept_counts: Mapping[str, int]) -> float:
    """Multiply-accumulates for one sample when every group keeps ``kept_counts[group]`` channels."""
    model = cost_model(structure)
    return float(model.macs(model.vector(kept_counts)))


def params(structure: Structure, kept_counts: Mapping[str, int]) -> int:
    """Parameter elements (buffers not counted) when every group keeps ``kept_counts[group]`` channels."""
    model = cost_model(structure)
    return round(float(model.params(model.vector(kept_counts))))
