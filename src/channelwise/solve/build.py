"""Solve a trace: connected labels become channels, channels produced together become groups."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from channelwise.solve.exactness import judged
from channelwise.solve.minimum import with_least
from channelwise.solve.numbers import Followed, contradictions, joins, used_numbers
from channelwise.structure import (
    Cause,
    Frozen,
    Group,
    MacTerm,
    ModuleSizes,
    Number,
    Reason,
    Role,
    Size,
    Slots,
    Structure,
    owner,
    part_size,
)
from channelwise.tracing.labels import EqualParts, LabelSpace
from channelwise.tracing.recording import Trace

_ROLES: tuple[Role, ...] = ("other", "output", "input", "scale", "shift")


Ban = tuple[np.ndarray, Reason]
"""Labels that must stay, as verification found out, and why."""


@dataclass(frozen=True, eq=False)
class Solution:
    """A structure, and which channels the labels of its trace became.

    ``channel`` (labels,): the channel of every label. ``stays`` (channels,): whether it must stay. ``group_of``
    (channels,): the number of its group in ``structure.groups``, -1 for none.
    """

    structure: Structure
    channel: np.ndarray
    stays: np.ndarray
    group_of: np.ndarray

    def groups_of(self, channels: np.ndarray) -> set[str]:
        """The names of the groups that these channels are in."""
        return {self.structure.groups[k].name for k in np.unique(self.group_of[channels]).tolist() if k >= 0}

    def channels_of(self, trace: Trace, group: Group) -> np.ndarray:
        """The channels of a group, in its own order, (size,)."""
        slots = group.slots[0]
        axis = trace.tensors[slots.tensor].axes[slots.axis]
        assert axis is not None
        return self.channel[axis[slots.index[:, 0]]]


def build(trace: Trace, bans: Sequence[Ban] = (), numbers: Collection[Followed] | None = None) -> Solution:
    """Turn a trace into groups, frozen slots with reasons, sizes and MAC terms. The trace stays as it is.

    Arguments:
        bans: labels that must stay on top of what the trace says.
        numbers: the numbers that follow the channels, see `channelwise.solve.numbers`; None: all of attributes that the
            code used.
    """
    space = trace.space.copy()
    for labels, reason in bans:
        space.freeze(labels, reason)
    layout, groups, group_of, sizes = _agreeing(trace, space)
    tensor_sizes = {}
    for name, tensor in trace.tensors.items():
        tensor_sizes[name] = tuple(sizes.of(axis, n) for axis, n in zip(tensor.axes, tensor.info.shape, strict=True))
    macs = tuple(
        MacTerm(
            m.module, m.operation, m.scale / max(trace.batch, 1), tuple(sizes.of(labels, n) for labels, n in m.factors)
        )
        for m in trace.macs
    )
    modules = {
        name: ModuleSizes(
            *(None if s is None else tuple(sizes.of(labels, n) for labels, n in s) for s in (call.input, call.output))
        )
        for name, call in trace.calls.items()
    }
    followed = used_numbers(trace) if numbers is None else numbers
    found = [Number(module, path, one.size(sizes.whole)) for one in followed for module, path in one.places]
    found = [number for number in found if number.size.terms]
    groups, norms = judged(trace, layout.comp, groups, group_of, {number.module for number in found})
    structure = Structure(
        tensors={n: t.info for n, t in trace.tensors.items()},
        tensor_sizes=tensor_sizes,
        groups=groups,
        frozen=layout.frozen(group_of),
        macs=macs,
        module_sizes=modules,
        numbers=tuple(found),
        norms=norms,
        normed=tuple(trace.normed),
        aliases=dict(trace.aliases),
        notes=tuple(trace.notes),
    )
    return Solution(structure, layout.comp, layout.frozen_comp, group_of)


def _agreeing(trace: Trace, space: LabelSpace) -> tuple[_Layout, tuple[Group, ...], np.ndarray, _Sizes]:
    """Groups in which every number that the code uses is right: runs that need it go together, or stay."""
    pairs = list(joins(trace))
    while True:
        layout, groups, group_of = _groups(trace, space)
        sizes = _Sizes(layout.comp, group_of, groups)
        # Runs that are as long as each other whatever is removed need not go together.
        loose = [(a, b) for a, b in pairs if sizes.whole(a) != sizes.whole(b)]
        for one, other in loose:
            space.join(one, other)
        wrong = [] if loose else list(contradictions(trace, sizes.whole))
        for use, runs in wrong:
            text = "a number that the code computes is how many there are only as long as all of them stay"
            for labels in runs:
                space.freeze(labels, Reason("number", use.module, text, Cause.CODE))
        if not loose and not wrong:
            return layout, groups, group_of, sizes


def _groups(trace: Trace, space: LabelSpace) -> tuple[_Layout, tuple[Group, ...], np.ndarray]:
    """The layout, the groups, and the group index of every channel; groups of which all must stay are none."""
    while True:
        layout, parts = _resolve_parts(trace, space)
        groups, group_of = layout.groups(parts)
        groups = with_least(trace, layout.comp, groups, group_of)
        whole = [group for group in groups if group.least >= part_size(group)]
        if not whole:
            return layout, groups, group_of
        for group in whole:
            reason = Reason("single", "", f"there are no more than {group.least}: {group.least_because}", Cause.SINGLE)
            space.freeze(group_labels(trace, group), reason)


def group_labels(trace: Trace, group: Group, channels: np.ndarray | slice = slice(None)) -> np.ndarray:
    """The labels of all slots of these channels of a group."""
    found = []
    for slots in group.slots:
        axis = trace.tensors[slots.tensor].axes[slots.axis]
        assert axis is not None
        found.append(axis[slots.index[channels].reshape(-1)])
    return np.concatenate(found)


def _resolve_parts(trace: Trace, space: LabelSpace) -> tuple[_Layout, list[EqualParts]]:
    """Keep the constraints under which every part may choose for itself; tie the parts of all others, index by index.

    A constraint stays loose when its labels are distinct channels that make up one group, none frozen and none subject
    to another constraint. Ties only join more channels, so this ends.
    """
    constraints = list(space.parts)
    while True:
        layout = _Layout(trace, space, space.components())
        loose: list[EqualParts] = []
        tied: list[EqualParts] = []
        part_of: dict[int, tuple[int, int]] = {}
        for constraint in constraints:
            channels = layout.comp[constraint.labels]
            if (channels == channels[:1]).all():
                continue
            part = {c: (len(channels), p) for p, row in enumerate(channels.tolist()) for c in row}
            free = len(part) == channels.size and channels.shape[1] > 1 and not layout.frozen_comp[channels].any()
            if free and layout.is_whole_group(channels) and all(part_of.get(c, p) == p for c, p in part.items()):
                part_of.update(part)
                loose.append(constraint)
            else:
                tied.append(constraint)
        if not tied:
            return layout, loose
        for constraint in tied:
            space.tie(constraint.labels, 0)
        constraints = loose


class _Layout:
    """Where channels have their slots, and which of them form a group."""

    def __init__(self, trace: Trace, space: LabelSpace, comp: np.ndarray) -> None:
        self.space, self.comp = space, comp
        self.axes: list[tuple[str, int]] = []
        slots, axis_of, index = [], [], []
        for tensor, its in trace.tensors.items():
            for axis, axis_labels in enumerate(its.axes):
                if axis_labels is None:
                    continue
                slots.append(axis_labels)
                axis_of.append(np.full(axis_labels.size, len(self.axes)))
                index.append(np.arange(axis_labels.size))
                self.axes.append((tensor, axis))
        empty = np.zeros(0, np.int64)
        self.slot_comp = comp[np.concatenate(slots)] if slots else empty
        self.slot_axis = np.concatenate(axis_of) if slots else empty
        self.slot_index = np.concatenate(index) if slots else empty
        self.count = int(comp.max()) + 1 if comp.size else 0
        self.frozen_comp = np.zeros(self.count, bool)
        if space.reasons:
            self.frozen_comp[comp[list(space.reasons)]] = True
        role = np.zeros(space.count, np.int8)
        for marked, name in space.roles:
            role[marked] = _ROLES.index(name)
        self.axis_role = [_ROLES[int(role[labels].max())] for labels in slots]
        self.extra_reasons: dict[int, Reason] = {}
        marks = np.random.default_rng(0).integers(1, 2**62, size=len(self.axes), dtype=np.uint64)
        self.signature = np.zeros(self.count, np.uint64)
        np.add.at(self.signature, self.slot_comp, marks[self.slot_axis])
        present = np.zeros(self.count, bool)
        present[self.slot_comp] = True
        self.free = present & ~self.frozen_comp

    def is_whole_group(self, channels: np.ndarray) -> bool:
        """Whether these are all the channels that have their slots in the same places."""
        one = self.signature[channels.flat[0]]
        return (
            bool((self.signature[channels] == one).all())
            and int((self.free & (self.signature == one)).sum()) == channels.size
        )

    def groups(self, parts: Sequence[EqualParts]) -> tuple[tuple[Group, ...], np.ndarray]:
        """The groups, and the group index of every channel (-1: none)."""
        part_id = np.full(self.count, -1)
        for constraint in parts:
            for part, members in enumerate(self.comp[constraint.labels]):
                part_id[members] = part
        order = np.lexsort((self.slot_index, self.slot_axis, self.slot_comp))
        order = order[self.free[self.slot_comp[order]]]
        group_of = np.full(self.count, -1)
        if not order.size:
            return (), group_of
        starts = np.flatnonzero(np.r_[True, np.diff(self.slot_comp[order]) != 0])
        lengths = np.diff(np.r_[starts, order.size])
        kinds, kind_of = np.unique(self.signature[self.slot_comp[order[starts]]], return_inverse=True)
        by_first_slot = np.argsort(order[starts], kind="stable")
        by_kind = by_first_slot[np.argsort(kind_of[by_first_slot], kind="stable")]
        members_of = np.split(by_kind, np.cumsum(np.bincount(kind_of, minlength=kinds.size))[:-1])
        groups: list[Group] = []
        names: dict[str, int] = {}
        for members in sorted(members_of, key=lambda m: int(order[starts[m[0]]])):
            if members.size < 2:
                self._only_one(self.slot_comp[order[starts[members[0]]]])
                continue
            table = order[starts[members][:, None] + np.arange(lengths[members[0]])]
            group = self._group(table, part_id, names)
            if group is None:
                continue
            group_of[self.slot_comp[table[:, 0]]] = len(groups)
            groups.append(group)
        return tuple(groups), group_of

    def _group(self, table: np.ndarray, part_id: np.ndarray, names: dict[str, int]) -> Group | None:
        """A group from slot numbers (channels, slots per channel), slots of one axis next to each other."""
        channels = self.slot_comp[table[:, 0]]
        axes = self.slot_axis[table[0]]
        slots = []
        starts = np.flatnonzero(np.r_[True, axes[1:] != axes[:-1]])
        for start, end in zip(starts.tolist(), [*starts[1:].tolist(), axes.size], strict=True):
            axis = int(axes[start])
            tensor, dim = self.axes[axis]
            slots.append(Slots(tensor, dim, self.slot_index[table[:, start:end]], self.axis_role[axis]))
        part = part_id[channels]
        parts = None
        if (part >= 0).all():
            values, counts = np.unique(part, return_counts=True)
            if counts.min() < 2:
                for channel in channels:
                    self._only_one(channel)
                return None
            parts = np.searchsorted(values, part)
        name = next((owner(s.tensor) for s in slots if s.role == "output"), owner(slots[0].tensor))
        names[name] = names.get(name, 0) + 1
        if names[name] > 1:
            name = f"{name}#{names[name]}"
        return Group(name, len(channels), tuple(slots), parts)

    def _only_one(self, channel: int) -> None:
        axes, slots = np.unique(self.slot_axis[self.slot_comp == channel], return_counts=True)
        text = "no other channel has its slots in the same places"
        if slots.max() > 1:
            tensor, _ = self.axes[axes[slots.argmax()]]
            text += f", as {slots.max()} of {tensor} go together"
        self.extra_reasons[int(channel)] = Reason("single", "", f"{text}, and one must stay", Cause.SINGLE)

    def frozen(self, group_of: np.ndarray) -> tuple[Frozen, ...]:
        """Slots that must stay, by tensor axis and reasons."""
        space = self.space
        reasons: dict[int, list[Reason]] = defaultdict(list)
        for node, reason in space.reasons.items():
            reasons[int(self.comp[node])].append(reason)
        for channel, reason in self.extra_reasons.items():
            reasons[channel].append(reason)
        # Channels with the same reasons have one number, so that slots are sorted by numbers alone.
        numbers: dict[tuple[Reason, ...], int] = {(): 0}
        why = np.zeros(self.count, np.int64)
        for channel, its in reasons.items():
            why[channel] = numbers.setdefault(tuple(its), len(numbers))
        lists = list(numbers)
        stays = np.flatnonzero(group_of[self.slot_comp] < 0)
        if not stays.size:
            return ()
        kind = self.slot_axis[stays] * len(lists) + why[self.slot_comp[stays]]
        order = np.argsort(kind, kind="stable")
        runs = np.split(stays[order], np.flatnonzero(np.diff(kind[order])) + 1)
        found = []
        for run in sorted(runs, key=lambda run: int(run[0])):
            axis = int(self.slot_axis[run[0]])
            tensor, dim = self.axes[axis]
            because = lists[why[self.slot_comp[run[0]]]]
            found.append(Frozen(tensor, dim, self.slot_index[run], self.axis_role[axis], because))
        return tuple(found)


class _Sizes:
    """Lengths of labelled axes as linear forms of kept counts."""

    def __init__(self, comp: np.ndarray, group_of: np.ndarray, groups: Sequence[Group]) -> None:
        self.group_of_label = group_of[comp] if comp.size else comp
        self.groups = groups
        self.sizes = np.array([g.size for g in groups] or [1])
        self.cache: dict[tuple[int, int, int, int], tuple[np.ndarray, Size]] = {}

    def whole(self, labels: np.ndarray) -> Size:
        """How many of these labels are kept."""
        return self.of(labels, labels.size)

    def of(self, labels: np.ndarray | None, n: int) -> Size:
        """The length of an axis of ``n`` elements with these labels (those of several blocks: per block)."""
        if labels is None or not labels.size:
            return Size(n)
        # The same labels are all of an axis of activations, and one block after another of a grouped weight's.
        key = (int(labels[0]), int(labels[-1]), labels.size, n)
        cached = self.cache.get(key)
        if cached is not None and np.array_equal(cached[0], labels):
            return cached[1]
        per_block = n / labels.size
        member = self.group_of_label[labels]
        counts = np.bincount(member[member >= 0], minlength=len(self.groups))
        terms = tuple(
            (self.groups[g].name, counts[g] / self.groups[g].size * per_block) for g in np.flatnonzero(counts).tolist()
        )
        size = Size(int((member < 0).sum()) * per_block, terms)
        self.cache[key] = (labels, size)
        return size
