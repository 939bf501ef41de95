"""The labels of a slim model: the channels that the trace of the full model found, at the slots that are left."""

from __future__ import annotations

import numpy as np

from channelwise.solve.build import group_labels
from channelwise.structure import Structure
from channelwise.tracing.recording import TensorLabels, Trace
from channelwise.verify.trials import Kept


def slim_labels(trace: Trace, structure: Structure, kept: Kept, channel: np.ndarray) -> dict[str, TensorLabels]:
    """For every tensor of the slim model, the channel of each of its slots."""
    stays = np.ones(int(channel.max()) + 1, bool)
    for group in structure.groups:
        removed = np.setdiff1d(np.arange(group.size), kept[group.name])
        slots = group.slots[0]
        axis = trace.tensors[slots.tensor].axes[slots.axis]
        assert axis is not None
        stays[channel[axis[slots.index[removed, 0]]]] = False
    found = {}
    for name, labels in trace.tensors.items():
        axes: list[np.ndarray | None] = []
        shape = list(labels.info.shape)
        for number, axis in enumerate(labels.axes):
            mine = None if axis is None else channel[axis][stays[channel[axis]]]
            if mine is not None:
                shape[number] = mine.size // (labels.info.blocks if number == 1 else 1)
            axes.append(mine if shape[number] > 1 else None)
        info = labels.info
        found[name] = TensorLabels(
            type(info)(name, tuple(shape), info.is_parameter, info.module, info.blocks), tuple(axes)
        )
    return found


def only_ones(trace: Trace, structure: Structure, kept: Kept, channel: np.ndarray) -> list[int]:
    """The channels of which no other of their group, or of their part of it, is kept."""
    found = []
    for group in structure.groups:
        if len(kept[group.name]) == len(group.members):
            found += channel[group_labels(trace, group, kept[group.name])].tolist()
    return found
