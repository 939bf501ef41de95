"""Copies that are none where one channel is left, though code writes into them, and not into what they are copies of.

``x.reshape(…)``, ``x.contiguous()`` and the like copy only where they must. After a transpose they must, unless one of
the two axes is of length 1: a shuffle of channels in two groups, of which one each is left, returns its input.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import torch

from channelwise.structure import Reason
from channelwise.tracing.labels import LabelMap
from channelwise.tracing.memory.flow import Flow

_KEPT_FOR_BACKWARD = {
    "_log_softmax", "_softmax", "amax", "amin", "celu", "cumprod", "elu", "exp", "expm1", "leaky_relu",
    "linalg_vector_norm", "logcumsumexp", "logsumexp", "norm", "pow", "prod", "reciprocal", "relu",
    "rrelu_with_noise", "rsqrt", "selu", "sigmoid", "sqrt", "std", "tan", "tanh",
}  # fmt: skip
"""Operations whose gradient, at least in place, is computed from their result, so that nothing may write into it."""


@dataclass(frozen=True)
class Copy:
    """Memory that a run copied, ``source`` and ``target`` by serial numbers, and the label maps of what was copied.

    ``position``: so many operations came before it.
    """

    source: int
    target: int
    position: int
    maps: tuple[LabelMap, ...]
    reason: Reason


def depends_on_widths(x: torch.Tensor, labelled: Collection[int], memory_format: torch.memory_format) -> bool:
    """Whether a copy of ``x`` in this format would be none if these of its axes were of length 1."""
    strides, sizes = x.stride(), x.shape
    dense = 1
    for axis in sorted((a for a in range(x.ndim) if sizes[a] > 1), key=strides.__getitem__):
        if strides[axis] != dense:
            # A part of a larger tensor.
            return False
        dense *= sizes[axis]
    order = list(range(x.ndim))
    if memory_format in (torch.channels_last, torch.channels_last_3d):
        order = [0, *order[2:], 1]
    rest = [strides[a] for a in order if sizes[a] > 1 and a not in labelled]
    return rest == sorted(rest, reverse=True)


def written_into(copies: Sequence[Copy], flow: Flow, outputs: Iterable[torch.Tensor]) -> list[Copy]:
    """Those of these copies that must stay copies: one side is written into after it, and the other side is in use."""
    found: list[Copy] = []
    returned = set(flow.storages(outputs))
    written = [(position, s) for position, operation in enumerate(flow.operations) for s in operation.written]
    for chain in _chains(copies):
        members = {side for copy in chain for side in (copy.source, copy.target)}
        made = {copy.target: copy.position for copy in chain}
        copying = {copy.position for copy in chain}
        if any(
            position > max(made.get(storage, -1), made.get(other, -1)) and _in_use(other, flow, copying, returned)
            for position, storage in written
            if storage in members
            for other in members - {storage}
        ):
            found += chain
    return found


def _chains(copies: Sequence[Copy]) -> list[list[Copy]]:
    """Copies of copies together."""
    chains: list[list[Copy]] = []
    for copy in copies:
        # In the order of the run, what is copied was made before.
        met = [c for c in chains if any(copy.source in (other.source, other.target) for other in c)]
        chains = [c for c in chains if c not in met] + [[*(other for c in met for other in c), copy]]
    return chains


def _in_use(storage: int, flow: Flow, copying: Collection[int], returned: Collection[int]) -> bool:
    """Whether more than copying it and writing into it needs this memory, as it does a parameter's or an input's."""
    made = False
    for position, operation in enumerate(flow.operations):
        if storage in operation.returned:
            if operation.name in _KEPT_FOR_BACKWARD:
                return True
            made = made or storage not in operation.read
        elif storage in operation.read and position not in copying:
            return True
    return not made or storage in returned
