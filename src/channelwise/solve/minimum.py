"""How many channels of a group must stay because code takes an axis of length 1 for something else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from channelwise.structure import Group, part_size
from channelwise.tracing.recording import Trace


def with_least(trace: Trace, comp: np.ndarray, groups: Sequence[Group], group_of: np.ndarray) -> tuple[Group, ...]:
    """The groups with the least number of channels of every part, so that no axis of which two must stay keeps one.

    ``comp`` is the channel of every label, ``group_of`` the group of every channel, -1 for those that stay.
    """
    found = list(groups)
    for axis in trace.space.two_stay:
        for row in comp[axis.labels]:
            channels, counts = np.unique(row, return_counts=True)
            owners = np.unique(group_of[channels])
            if len(owners) > 1 or owners[0] < 0 or counts.min() > 1:
                # One of each group stays anyway.
                continue
            group = found[owners[0]]
            least = _least(trace, comp, group, channels)
            if least > group.least:
                found[owners[0]] = replace(group, least=least, least_because=str(axis.reason))
    return tuple(found)


def _least(trace: Trace, comp: np.ndarray, group: Group, channels: np.ndarray) -> int:
    """So many of every part must stay that two of these channels do."""
    slots = group.slots[0]
    labels = trace.tensors[slots.tensor].axes[slots.axis]
    assert labels is not None
    among = np.isin(comp[labels[slots.index[:, 0]]], channels)
    size = part_size(group)
    others = np.array([size - int(among[part].sum()) for part in group.members])
    return next(least for least in range(1, size + 1) if np.maximum(least - others, 0).sum() > 1)
