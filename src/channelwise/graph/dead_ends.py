"""Work of a model whose results reach none of its outputs, so that no comparison of outputs tells anything about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

from channelwise.graph.context import MacRecord

_Storages = tuple[int, ...]


@dataclass(frozen=True)
class Flow:
    """What the operations of a run read and wrote, in their order, and how many MACs were on record before each."""

    operations: list[tuple[_Storages, _Storages, int]] = field(default_factory=list)

    def add(self, read: Sequence[torch.Tensor], written: Sequence[torch.Tensor], macs: int) -> None:
        """An operation, with ``macs`` records of the operations before it."""
        self.operations.append((_storages(read), _storages(written), macs))

    def dead_ends(self, macs: Sequence[MacRecord], outputs: Iterable[torch.Tensor]) -> list[MacRecord]:
        """The MACs of operations that no output depends on."""
        wanted = set(_storages(outputs))
        found: list[MacRecord] = []
        end = len(macs)
        for read, written, begin in reversed(self.operations):
            # What gives no tensor gives a number, and the code may go on from there.
            used = not written or not wanted.isdisjoint(written)
            if not used:
                found += macs[begin:end]
            # New storage was something else before, at the same address.
            wanted.difference_update(set(written).difference(read))
            if used:
                wanted.update(read)
            end = begin
        return found


def _storages(tensors: Iterable[torch.Tensor]) -> _Storages:
    return tuple(t.untyped_storage()._cdata for t in tensors if t.layout == torch.strided)
