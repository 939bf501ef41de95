"""Channels put in order of importance, once, so that a narrower layer is a prefix of the full one."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

import numpy as np
import torch

from channelwise.ranking import Criterion, Weights, scores
from channelwise.select.channels import dead_channels
from channelwise.select.widths import part_count
from channelwise.selection import Selection
from channelwise.structure import Group, Structure, TensorInfo
from channelwise.surgery.cuts import Cut
from channelwise.surgery.slicing import take

log = logging.getLogger(__name__)


class Prefixes:
    """The channels of a sorted network that a width keeps: the first ones of every part of a group, equally many each.

    Channels of all groups are in one row, as in `channelwise.surgery.cuts.Stays`.
    """

    def __init__(self, structure: Structure) -> None:
        sizes = [group.size for group in structure.groups]
        self.groups = len(sizes)
        self._names = [group.name for group in structure.groups]
        self._ends = np.cumsum(sizes, dtype=int)
        self._parts = np.array([part_count(group) for group in structure.groups], int)
        self._group = np.repeat(np.arange(len(sizes)), sizes)
        self._place = np.concatenate([np.zeros(0, int), *map(_place_in_part, structure.groups)])

    def channels(self, counts: np.ndarray) -> np.ndarray:
        """Which channels (channels of all groups,) stay when every group keeps so many (groups,)."""
        return self._place < (counts // self._parts)[self._group]

    def selection(self, counts: np.ndarray) -> Selection:
        """These channels as a selection."""
        each = np.split(self.channels(counts), self._ends[:-1]) if self.groups else []
        return Selection({name: np.flatnonzero(stay) for name, stay in zip(self._names, each, strict=True)})


def _place_in_part(group: Group) -> np.ndarray:
    """How many channels of its part come before each channel (size,)."""
    place = np.empty(group.size, int)
    for part in group.members:
        place[part] = np.arange(len(part))
    return place


def importance_order(structure: Structure, weights: Weights, ranking: Criterion) -> dict[str, np.ndarray]:
    """By group: which channel (size,) goes to each place, the most important first, every part for itself.

    Channels that an earlier pruning removed go last. Groups that cannot be sorted are left out: they stay as they are.
    """
    dead = dead_channels(structure, weights)
    orders = {}
    for group in structure.groups:
        values = np.where(dead[group.name], -np.inf, scores(ranking, group, weights))
        order = np.arange(group.size)
        for part in group.members:
            order[part] = part[np.argsort(-values[part], kind="stable")]
        orders[group.name] = order
    for name in _unsortable(structure, orders):
        log.info("The channels of %s keep their order: they are in several blocks of a grouped convolution.", name)
        del orders[name]
    return orders


def sorted_tensors(
    structure: Structure, tensors: Mapping[str, torch.Tensor], orders: Mapping[str, np.ndarray]
) -> dict[str, torch.Tensor]:
    """The tensors whose slots move, as new tensors, by name. What a network computes does not change by this."""
    moved = {}
    for name, source in _sources(structure, orders).items():
        info = structure.tensors[name]
        columns = None
        if 1 in source and info.blocks > 1:
            per_block = source[1].reshape(info.blocks, -1) % info.shape[1]
            columns = per_block.repeat(info.shape[0] // info.blocks, axis=0)
        moved[name] = take(tensors[name], Cut(info, source, columns))
    return moved


def _sources(structure: Structure, orders: Mapping[str, np.ndarray]) -> dict[str, dict[int, np.ndarray]]:
    """For every axis that is sorted: from which slot each slot gets its values."""
    found: dict[str, dict[int, np.ndarray]] = {}
    for group in structure.groups:
        order = orders.get(group.name)
        if order is None or np.array_equal(order, np.arange(group.size)):
            continue
        for slots in group.slots:
            axes = found.setdefault(slots.tensor, {})
            source = axes.setdefault(slots.axis, np.arange(structure.tensors[slots.tensor].slots(slots.axis)))
            source[slots.index] = slots.index[order]
    return found


def _unsortable(structure: Structure, orders: Mapping[str, np.ndarray]) -> Collection[str]:
    """Groups whose order would move a column of a grouped convolution to another block than its rows."""
    bad: set[str] = set()
    for name, axes in _sources(structure, orders).items():
        info = structure.tensors[name]
        if info.blocks == 1 or not _columns_stray(info, axes):
            continue
        bad |= {g.name for g in structure.groups if g.name in orders and any(s.tensor == name for s in g.slots)}
    return bad


def _columns_stray(info: TensorInfo, axes: Mapping[int, np.ndarray]) -> bool:
    rows, columns = info.shape[:2]
    row_block = np.arange(rows) // (rows // info.blocks)
    from_block = axes.get(0, np.arange(rows)) // (rows // info.blocks)
    slots = axes.get(1, np.arange(info.blocks * columns)).reshape(info.blocks, columns)
    return bool((slots[row_block] // columns != from_block[:, None]).any())
