"""Batches in parts of a few samples, so that gradients fit into memory."""

from __future__ import annotations

from collections.abc import Iterator
from operator import itemgetter
from typing import Any

import torch

from channelwise.inputs.tree import leaves, mapped


def micro_batches(batch: Any, size: int | None) -> Iterator[Any]:
    """``batch`` in parts of at most ``size`` samples; whole if it is small or cannot be parted.

    It can be parted if it consists of tensors, in tuples, lists and dicts, that all have one sample per index of their
    first axis.
    """
    held = [value for value in leaves(batch) if value is not None]
    lengths = {value.shape[0] if isinstance(value, torch.Tensor) and value.dim() else -1 for value in held}
    if size is None or len(lengths) != 1 or max(lengths) <= size:
        yield batch
        return
    for start in range(0, max(lengths), size):
        yield mapped(batch, itemgetter(slice(start, start + size)))
