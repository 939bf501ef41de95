"""Reads the kept counts of all groups off the shapes of a slim model's tensors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from channelwise.errors import InvalidArgumentError
from channelwise.structure import Structure


def counts_from_shapes(structure: Structure, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Solve ``tensor_sizes == shapes`` for the kept counts.

    Raises:
        InvalidArgumentError: no selection gives these shapes; the message names a tensor and both shapes.
    """
    names = [g.name for g in structure.groups]
    column = {name: i for i, name in enumerate(names)}
    rows: list[np.ndarray] = []
    lengths: list[float] = []
    for name, sizes in structure.tensor_sizes.items():
        for size, length in zip(sizes, shapes.get(name, ()), strict=False):
            if size.terms:
                row = np.zeros(len(names))
                for group, factor in size.terms:
                    row[column[group]] += factor
                rows.append(row)
                lengths.append(length - size.constant)
    counts = {g.name: g.size for g in structure.groups}
    if rows:
        solution, _, rank, _ = np.linalg.lstsq(np.stack(rows), np.array(lengths), rcond=None)
        if rank < len(names):
            raise InvalidArgumentError("the shapes of the state dict do not tell how many channels every group keeps")
        counts = {name: round(float(value)) for name, value in zip(names, solution, strict=True)}
    for name, sizes in structure.tensor_sizes.items():
        promised = tuple(size(counts) for size in sizes)
        if name in shapes and promised != tuple(shapes[name]):
            raise InvalidArgumentError(f"{name} has shape {tuple(shapes[name])}, the other tensors ask for {promised}")
    return counts
