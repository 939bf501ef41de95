"""From the kept counts of all groups to the lengths of axes, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.sparse import csr_array

from channelwise.errors import InvalidArgumentError
from channelwise.structure import Size, Structure


class Lengths:
    """The lengths of many axes at once: ``constant + terms @ counts``, with counts in the order of ``groups``."""

    def __init__(self, sizes: Sequence[Size], groups: Sequence[str]) -> None:
        column = {name: i for i, name in enumerate(groups)}
        entries = [(row, column[g], m) for row, size in enumerate(sizes) for g, m in size.terms]
        rows, columns, values = zip(*entries, strict=True) if entries else ((), (), ())
        self.terms = csr_array(
            (np.array(values, float), (np.array(rows, int), np.array(columns, int))), shape=(len(sizes), len(groups))
        )
        self.constant = np.array([size.constant for size in sizes], float)

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        """For counts (groups, batch) the whole numbers (axes, batch), as floats."""
        return np.rint(self.terms @ counts + self.constant[:, None])

    def at(self, counts: Sequence[int] | np.ndarray) -> tuple[int, ...]:
        """For counts (groups,)."""
        return tuple(np.rint(self.terms @ np.asarray(counts, float) + self.constant).astype(int).tolist())


def counts_from_shapes(structure: Structure, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Solve ``tensor_sizes == shapes`` for the kept counts.

    Raises:
        InvalidArgumentError: no selection gives these shapes; the message names a tensor and both shapes.
    """
    counts = structure.full()
    axes = [
        (size, length)
        for name, sizes in structure.tensor_sizes.items()
        for size, length in zip(sizes, shapes.get(name, ()), strict=False)
        if size.terms
    ]
    if axes:
        sizes, found = zip(*axes, strict=True)
        lengths = Lengths(sizes, list(counts))
        solution, _, rank, _ = np.linalg.lstsq(lengths.terms.toarray(), np.array(found) - lengths.constant, rcond=None)
        if rank < len(counts):
            raise InvalidArgumentError("the shapes of the state dict do not tell how many channels every group keeps")
        counts = {name: round(float(value)) for name, value in zip(counts, solution, strict=True)}
    for name, sizes in structure.tensor_sizes.items():
        promised = tuple(size(counts) for size in sizes)
        if name in shapes and promised != tuple(shapes[name]):
            raise InvalidArgumentError(f"{name} has shape {tuple(shapes[name])}, the other tensors ask for {promised}")
    return counts
