"""Work of a model whose results reach none of its outputs, so that no comparison of outputs tells anything about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from channelwise.tracing.context import MacRecord
from channelwise.tracing.memory.flow import Flow


def dead_ends(flow: Flow, macs: Sequence[MacRecord], outputs: Iterable[torch.Tensor]) -> list[MacRecord]:
    """The MACs of operations that no output depends on."""
    wanted = set(flow.storages(outputs))
    found: list[MacRecord] = []
    end = len(macs)
    for operation in reversed(flow.operations):
        # What gives no tensor gives a number, and the code may go on from there.
        if not operation.returned or not wanted.isdisjoint(operation.returned):
            wanted.update(operation.read)
        else:
            found += macs[operation.macs : end]
        end = operation.macs
    return found
