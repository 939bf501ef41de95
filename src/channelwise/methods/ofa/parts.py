"""The active parts of tensors: whose their slots are, and which of them stay when groups keep so many channels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from channelwise.methods.ofa.active import Part
from channelwise.structure import Group, Structure, TensorInfo


@dataclass(frozen=True, eq=False)
class Layout:
    """Whose the slots of an axis are. ``owner`` (slots,): position of the group, or of the last, none at all.

    ``rank`` (slots,): a slot is active while this is below the number of channels that a part of its group keeps.
    """

    owner: np.ndarray
    rank: np.ndarray


class Kept:
    """What is kept of every layout when every part of a group keeps so many channels, ``per_part`` (groups + 1,)."""

    def __init__(self, counts: Sequence[int], parts: np.ndarray) -> None:
        self.counts = np.asarray(counts)
        self._per_part = np.append(self.counts // parts, np.iinfo(int).max)
        self._masks: dict[int, np.ndarray] = {}

    def mask(self, layout: Layout) -> np.ndarray:
        """(slots,) of bool; worked out once, for the tensors of a batch norm and its neighbours are laid out alike."""
        found = self._masks.get(id(layout))
        if found is None:
            found = self._masks[id(layout)] = layout.rank < self._per_part[layout.owner]
        return found


class LateParts(Mapping[str, Part]):
    """The active parts by local name, worked out when they are used: behind long concatenations that takes a while."""

    def __init__(self, tensors: Mapping[str, tuple[TensorInfo, dict[int, Layout]]], kept: Kept) -> None:
        self._tensors, self._kept = tensors, kept
        self._known: dict[str, Part | None] = {}

    def __getitem__(self, local: str) -> Part:
        if local not in self._known:
            self._known[local] = active_part(*self._tensors[local], self._kept)
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


def layouts(structure: Structure) -> dict[str, dict[int, Layout]]:
    """By tensor and axis; axes that are laid out alike share one object."""
    drafts: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = {}
    nobody = len(structure.groups)
    for position, group in enumerate(structure.groups):
        rank = _ranks(group)
        for slots in group.slots:
            key = (slots.tensor, slots.axis)
            if key not in drafts:
                n = structure.tensors[slots.tensor].slots(slots.axis)
                drafts[key] = np.full(n, nobody), np.zeros(n, int)
            owner, ranks = drafts[key]
            owner[slots.index] = position
            ranks[slots.index] = rank[:, None]
    shared: dict[tuple[bytes, bytes], Layout] = {}
    found: dict[str, dict[int, Layout]] = {}
    for (tensor, axis), (owner, ranks) in drafts.items():
        layout = shared.setdefault((owner.tobytes(), ranks.tobytes()), Layout(owner, ranks))
        found.setdefault(tensor, {})[axis] = layout
    return found


def _ranks(group: Group) -> np.ndarray:
    """Place of every channel (size,) in its part."""
    rank = np.empty(group.size, int)
    for part in group.members:
        rank[part] = np.arange(len(part))
    return rank


def active_part(info: TensorInfo, axes: Mapping[int, Layout], kept: Kept) -> Part | None:
    """The active part of a tensor, None if that is all of it."""
    masks = {axis: kept.mask(layout) for axis, layout in axes.items()}
    columns = None
    if info.blocks > 1 and 1 in masks:
        columns = _columns(info, masks.pop(1), masks.get(0))
    prefix, index = [], {}
    for axis, mask in masks.items():
        count = int(mask.sum())
        if count == len(mask):
            continue
        if mask[:count].all():
            prefix.append((axis, count))
        else:
            index[axis] = torch.from_numpy(np.flatnonzero(mask))
    if columns is not None and (columns == np.arange(columns.shape[1])).all():
        prefix += [(1, columns.shape[1])] if columns.shape[1] < info.shape[1] else []
        columns = None
    if not prefix and not index and columns is None:
        return None
    return Part(prefix, index, None if columns is None else torch.from_numpy(columns))


def _columns(info: TensorInfo, mask: np.ndarray, rows: np.ndarray | None) -> np.ndarray:
    """Kept columns (active rows, columns) of a grouped convolution's weight."""
    live = np.ones(info.shape[0], bool) if rows is None else rows
    block = np.flatnonzero(live) // (info.shape[0] // info.blocks)
    blocks = np.unique(block)
    kept = mask.reshape(info.blocks, info.shape[1])[blocks]
    columns = np.nonzero(kept)[1].reshape(len(blocks), -1)
    return columns[np.searchsorted(blocks, block)]
