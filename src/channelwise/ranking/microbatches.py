"""Batches in parts of a few samples, so that gradients fit into memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch


def micro_batches(batch: Any, size: int | None) -> Iterator[Any]:
    """``batch`` in parts of at most ``size`` samples; whole if it is small or cannot be parted.

    It can be parted if it consists of tensors, in tuples, lists and dicts, that all have one sample per index of their
    first axis.
    """
    lengths: set[int] = set()
    plain = _collect(batch, lengths)
    if size is None or not plain or len(lengths) != 1 or max(lengths) <= size:
        yield batch
        return
    for start in range(0, max(lengths), size):
        yield _part(batch, slice(start, start + size))


def _collect(value: Any, lengths: set[int]) -> bool:
    """Add the lengths of the first axes of all tensors; False if something else may hold one entry a sample."""
    if isinstance(value, torch.Tensor):
        lengths.add(value.shape[0] if value.dim() else -1)
        return True
    if isinstance(value, Mapping):
        return all(_collect(item, lengths) for item in value.values())
    if type(value) in (list, tuple):
        return all(_collect(item, lengths) for item in value)
    return value is None


def _part(value: Any, where: slice) -> Any:
    if isinstance(value, torch.Tensor):
        return value[where]
    if isinstance(value, Mapping):
        return {key: _part(item, where) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_part(item, where) for item in value)
    return value
