"""What the operations of a run did to the memory of tensors: read it, hand it on, write into it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

import torch

Storages = tuple[int, ...]
"""Memory of tensors by serial numbers: what lay at one address, one after another, has different ones."""


@dataclass(frozen=True)
class Operation:
    """An operation by its ATen name: what it ``read``, ``returned``, new memory or not, and has ``written`` into."""

    name: str
    read: Storages
    returned: Storages
    written: Storages

    def views(self, storage: int) -> bool:
        """Whether this only hands memory on, in another shape for example."""
        return storage in self.returned and storage in self.read and storage not in self.written


@dataclass(frozen=True)
class Flow:
    """The operations of a run in their order."""

    operations: list[Operation] = field(default_factory=list)
    _serials: dict[int, int] = field(default_factory=dict)
    _next: Iterator[int] = field(default_factory=count)

    def add(
        self,
        name: str,
        read: Iterable[torch.Tensor],
        returned: Iterable[torch.Tensor],
        written: Iterable[torch.Tensor],
    ) -> None:
        """The next operation."""
        before = _addresses(read)
        inputs = tuple(map(self._serial, before))
        into = self.storages(written)
        outputs = []
        for address in _addresses(returned):
            if address not in before:
                self._serials[address] = next(self._next)
            outputs.append(self._serial(address))
        self.operations.append(Operation(name, inputs, tuple(outputs), into))

    def storages(self, tensors: Iterable[torch.Tensor]) -> Storages:
        """The memory of tensors that are alive."""
        return tuple(map(self._serial, _addresses(tensors)))

    def _serial(self, address: int) -> int:
        if address not in self._serials:
            self._serials[address] = next(self._next)
        return self._serials[address]


def _addresses(tensors: Iterable[torch.Tensor]) -> Sequence[int]:
    return [t.untyped_storage()._cdata for t in tensors if t.layout == torch.strided]
