"""Which groups the questions of a trace are about, and where the channels of groups are in a slim model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from channelwise.graph.channels import components
from channelwise.graph.labels import Question
from channelwise.graph.recording import TensorLabels, Trace
from channelwise.graph.structure import Structure

Site = tuple[type | str, int]
"""A place in the code of a class: the how-manieth question in a module of it."""

Asked = dict[str, list[Question]]
"""The groups with questions, and all questions about each."""


def sites_of(trace: Trace) -> dict[int, Site]:
    """The site of every question, by the question's id."""
    counts: Counter[str] = Counter()
    found = {}
    for question in trace.space.questions:
        module = question.reason.module
        found[id(question)] = (trace.types.get(module, module), counts[module])
        counts[module] += 1
    return found


class Membership:
    """Which group every label is in."""

    def __init__(self, trace: Trace, structure: Structure) -> None:
        channel = components(trace.space)
        group_of = np.full(int(channel.max()) + 1, -1)
        for number, group in enumerate(structure.groups):
            slots = group.slots[0]
            axis = trace.tensors[slots.tensor].axes[slots.axis]
            assert axis is not None
            group_of[channel[axis[slots.index[:, 0]]]] = number
        self.names = [group.name for group in structure.groups]
        self.of_channel, self.of_label = group_of, group_of[channel]

    def names_of(self, groups: np.ndarray) -> set[str]:
        """The names of groups, given by their numbers; -1 is none."""
        return {self.names[k] for k in np.unique(groups).tolist() if k >= 0}


def asked_of(trace: Trace, structure: Structure) -> Asked:
    """The groups touched by questions."""
    membership = Membership(trace, structure)
    found: Asked = {}
    for question in trace.space.questions:
        for name in membership.names_of(membership.of_label[question.labels]):
            found.setdefault(name, []).append(question)
    return found


def asked_in(trace: Trace, structure: Structure, module: str) -> set[str]:
    """The groups touched by questions of a module."""
    asked = [q.labels for q in trace.space.questions if q.reason.module == module]
    membership = Membership(trace, structure)
    return membership.names_of(membership.of_label[np.concatenate(asked)]) if asked else set()


def slim_labels(
    trace: Trace, structure: Structure, kept: Mapping[str, np.ndarray], channel: np.ndarray
) -> dict[str, TensorLabels]:
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
