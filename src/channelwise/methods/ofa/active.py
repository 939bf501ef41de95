"""The active slots of a dynamic layer's tensors, and taking them: a view of a prefix, or an index."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from channelwise.structure import NormedWeight
from channelwise.surgery.cuts import Cut, Owners, Stays
from channelwise.surgery.normed import new_scale
from channelwise.surgery.slicing import SlotIndex


@dataclass(frozen=True, eq=False)
class Part:
    """The active slots of one tensor; immutable, so copies of a model share it.

    ``prefix`` are pairs (axis, length), ``index`` sorted slots by axis where they are no prefix. ``columns`` (rows,
    columns) say for a grouped convolution which columns every active row keeps.
    """

    prefix: tuple[tuple[int, int], ...] = ()
    index: Mapping[int, SlotIndex] = field(default_factory=dict)
    columns: SlotIndex | None = None

    @classmethod
    def of(cls, cut: Cut) -> Part:
        """What stays of a tensor, with prefixes where there are some."""
        prefix = [(axis, len(slots)) for axis, slots in cut.axes.items() if slots[-1] < len(slots)]
        index = {axis: SlotIndex(slots) for axis, slots in cut.axes.items() if slots[-1] >= len(slots)}
        columns = cut.columns
        if columns is not None and (columns == np.arange(columns.shape[1])).all():
            prefix += [(1, columns.shape[1])] if columns.shape[1] < cut.info.shape[1] else []
            columns = None
        return cls(tuple(prefix), index, None if columns is None else SlotIndex(columns))

    @property
    def is_view(self) -> bool:
        """Whether what is taken shares memory with the whole."""
        return not self.index and self.columns is None

    def __deepcopy__(self, memo: Any) -> Part:
        return self


class LateParts(Mapping[str, Part]):
    """The active parts by local name, worked out when they are used: behind long concatenations that takes a while."""

    def __init__(self, tensors: Mapping[str, Owners], stays: Stays) -> None:
        self._tensors, self._stays = tensors, stays
        self._known: dict[str, Part | None] = {}

    def __getitem__(self, local: str) -> Part:
        if local not in self._known:
            cut = self._stays.cut(self._tensors[local])
            self._known[local] = None if cut is None else Part.of(cut)
        part = self._known[local]
        if part is None:
            raise KeyError(local)
        return part

    def __iter__(self) -> Iterator[str]:
        return (local for local in self._tensors if local in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __deepcopy__(self, memo: Any) -> LateParts:
        return self

    def __reduce__(self) -> Any:
        return dict, (dict(self),)


def take_active(tensor: torch.Tensor, part: Part | None) -> torch.Tensor:
    """The active slots of ``tensor``. Gradients flow to them; those of all other slots are exactly zero."""
    if part is None:
        return tensor
    for axis, length in part.prefix:
        tensor = tensor.narrow(axis, 0, length)
    for axis, slots in part.index.items():
        tensor = tensor.index_select(axis, slots.on(tensor.device))
    if part.columns is not None:
        columns = part.columns.on(tensor.device)
        columns = columns.reshape(*columns.shape, *[1] * (tensor.dim() - 2))
        tensor = tensor.gather(1, columns.expand(*columns.shape[:2], *tensor.shape[2:]))
    return tensor


class _Instead(torch.autograd.Function):
    """Other values in the place of a tensor, with their gradients for it."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return values

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return grad, None


def rescaled_active(
    normed: NormedWeight, whole: Mapping[str, torch.Tensor], active: Mapping[str, Part]
) -> torch.Tensor:
    """The active scale of a normed weight, by which its active slots are divided as they are at full width.

    Its gradient is that of the scale that the static subnet has.
    """
    full = [whole[name] for name in normed.names]
    with torch.no_grad():
        left = [
            tensor.masked_fill(_inactive(tensor, active[name]), 0) if name in active else tensor
            for name, tensor in zip(normed.names, full, strict=True)
        ]
        new = take_active(new_scale(normed, full, left), active.get(normed.scale))
    scale = take_active(whole[normed.scale], active.get(normed.scale))
    return _Instead.apply(scale, new)


def _inactive(whole: torch.Tensor, part: Part) -> torch.Tensor:
    """True where a slot is not active, of the shape of ``whole``."""
    places = torch.arange(whole.numel(), device=whole.device).view(whole.shape)
    inactive = torch.ones(whole.numel(), dtype=torch.bool, device=whole.device)
    inactive[take_active(places, part).reshape(-1)] = False
    return inactive.view(whole.shape)


def put_active(whole: torch.Tensor, part: Part | None, value: torch.Tensor) -> None:
    """Write ``value`` into the active slots of a buffer (C,), in place."""
    with torch.no_grad():
        if part is None:
            if value is not whole:
                whole.copy_(value)
        elif not part.is_view:
            ((axis, slots),) = part.index.items()
            whole.index_copy_(axis, slots.on(whole.device), value.to(whole))
        elif value._base is not whole:
            take_active(whole, part).copy_(value)
