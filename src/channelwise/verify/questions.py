"""Which channel groups the questions of a trace are about, and where they were asked."""

from __future__ import annotations

from collections import Counter
from enum import IntEnum

import numpy as np

from channelwise.structure import Structure
from channelwise.tracing.labels import Question
from channelwise.tracing.recording import Trace

Asked = dict[str, list[Question]]
"""The groups with questions, and all questions about each."""

_PICKING = ("slice", "split", "chunk", "narrow", "select", "unbind", "index", "unfold", "strided", "pad")
"""In the names of operations for which it matters which channels there are, not only how many."""

Site = tuple[type | str, int]
"""A place in the code of a class: the how-manieth question in a module of it."""


class Use(IntEnum):
    """What code may do with the channels of a group: count them in a shape, compute with their number, pick some."""

    COUNTED = 0
    READ = 1
    PICKED = 2


class Membership:
    """Which group every label is in."""

    def __init__(self, trace: Trace, structure: Structure) -> None:
        channel = trace.space.components()
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


def uses_of(trace: Trace, structure: Structure, asked: Asked) -> dict[str, Use]:
    """For every group with questions, what code may do with its channels."""
    channel, membership = trace.space.components(), Membership(trace, structure)

    def use(question: Question, name: str) -> Use:
        if question.reason.operation == "attribute":
            return Use.COUNTED
        whole = question.labels if question.whole is None else question.whole
        if len(membership.names_of(membership.of_label[whole])) > 1:
            return Use.PICKED
        if any(operation in question.reason.operation for operation in _PICKING):
            # All of the one group that is there are not picked: the queries, for example, out of those of all heads.
            mine = channel[question.labels[membership.of_label[question.labels] >= 0]]
            all_of_it = question.whole is not None and np.unique(mine).size == structure.group(name).size
            return Use.COUNTED if all_of_it else Use.PICKED
        return Use.COUNTED if question.reason.operation.startswith("aten.") else Use.READ

    return {name: max(use(question, name) for question in asked[name]) for name in asked}


def asked_in(trace: Trace, structure: Structure, module: str) -> set[str]:
    """The groups touched by questions of a module."""
    asked = [q.labels for q in trace.space.questions if q.reason.module == module]
    membership = Membership(trace, structure)
    return membership.names_of(membership.of_label[np.concatenate(asked)]) if asked else set()


def sites_of(trace: Trace) -> dict[int, Site]:
    """The site of every question, by the question's id."""
    counts: Counter[str] = Counter()
    found = {}
    for question in trace.space.questions:
        module = question.reason.module
        found[id(question)] = (trace.types.get(module, module), counts[module])
        counts[module] += 1
    return found
