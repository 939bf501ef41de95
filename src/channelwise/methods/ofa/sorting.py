"""Channels put in order of importance, once, so that a narrower layer is a prefix of the full one."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

import numpy as np
import torch

from channelwise.ranking import Criterion, Weights, scores
from channelwise.select.channels import dead_channels
from channelwise.structure import Group, Structure, TensorInfo

log = logging.getLogger(__name__)


def prefix(group: Group, count: int) -> np.ndarray:
    """The first ``count`` channels, or of a group with parts the first of every part; sorted indices (count,)."""
    parts = group.members
    return np.sort(np.concatenate([part[: count // len(parts)] for part in parts]))


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
    sources = _sources(structure, orders)
    moved = {}
    for name, axes in sources.items():
        result = tensors[name].detach()
        for axis, source in sorted(axes.items()):
            if axis == 1 and structure.tensors[name].blocks > 1:
                result = _columns_moved(result, structure.tensors[name], source)
            else:
                result = result.index_select(axis, torch.from_numpy(source).to(result.device))
        moved[name] = _laid_out(result, tensors[name])
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


def _columns_moved(tensor: torch.Tensor, info: TensorInfo, source: np.ndarray) -> torch.Tensor:
    """Columns of a blocked weight, whose rows have moved already, brought into their new order."""
    rows, columns = info.shape[:2]
    per_row = (source.reshape(info.blocks, columns) % columns)[np.arange(rows) // (rows // info.blocks)]
    index = torch.from_numpy(per_row).to(tensor.device).reshape(rows, columns, *[1] * (tensor.dim() - 2))
    return tensor.gather(1, index.expand(tensor.shape))


def _laid_out(result: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if like.dim() == 4 and not like.is_contiguous() and like.is_contiguous(memory_format=torch.channels_last):
        return result.contiguous(memory_format=torch.channels_last)
    return result.contiguous()
