"""Of which groups zeroing channels is removing them, and which modules must count only kept channels for that."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from channelwise.structure import Group, Norm, Reason
from channelwise.tracing.context import Maps
from channelwise.tracing.recording import CountedCall, Trace

Run = tuple[int, np.ndarray]
"""An axis (-1: the last one) and the channels along it, (length,)."""

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def judged(
    trace: Trace, comp: np.ndarray, groups: Sequence[Group], group_of: np.ndarray, numbered: Collection[str]
) -> tuple[tuple[Group, ...], tuple[Norm, ...]]:
    """The groups, inexact ones marked with the reason and the norms they need, and all such norms.

    Arguments:
        comp: the channel of every label. ``group_of``: the index of the group of every channel, -1 for none.
        numbered: modules with numbers that follow the channels.
    """
    if not trace.space.inexact:
        return tuple(groups), ()
    reasons: list[dict[str, Reason]] = [{} for _ in groups]
    counted: dict[str, set[int]] = {}
    for labels, reason in trace.space.inexact:
        channels = comp[labels]
        members = group_of[channels]
        for number in np.unique(members[members >= 0]).tolist():
            reasons[number].setdefault(reason.module, reason)
        counted.setdefault(reason.module, set()).update(channels[members >= 0].tolist())
    finder = _NormFinder(trace, comp, groups, group_of, numbered)
    found = {module: finder.norm(module, channels) for module, channels in counted.items() if channels}
    norms = {module: norm for module, norm in found.items() if norm is not None}
    return tuple(_marked(g, why, norms) for g, why in zip(groups, reasons, strict=True)), tuple(norms.values())


def _marked(group: Group, reasons: Mapping[str, Reason], norms: Mapping[str, Norm]) -> Group:
    if not reasons:
        return group
    # What a norm cannot mend says more than one that could.
    others = [reason for module, reason in reasons.items() if module not in norms]
    why = (others or list(reasons.values()))[0]
    return replace(group, exact=False, inexact_because=str(why), norms=() if others else tuple(reasons))


class _NormFinder:
    """Tells which modules can be run on the kept channels of their input alone, and how."""

    def __init__(
        self, trace: Trace, comp: np.ndarray, groups: Sequence[Group], group_of: np.ndarray, numbered: Collection[str]
    ) -> None:
        self.trace, self.comp, self.groups, self.group_of = trace, comp, groups, group_of
        self.numbered = numbered
        self.uncounted = set(trace.uncounted)
        self.names = sorted([*((n, n) for n in trace.tensors), *trace.aliases.items()])
        self.calls: dict[str, list[CountedCall]] = {}
        for call in trace.counted:
            self.calls.setdefault(call.module, []).append(call)

    def norm(self, module: str, counted: set[int]) -> Norm | None:
        """How to run ``module``, whose code counts these channels of groups, on the kept ones; None if that is unclear.

        All its calls must see the same channels along one axis and return them along one axis, the module must own
        all tensors of its own that lose slots with them, and its code must be known to adapt.
        """
        runs = [self._run(call, counted) for call in self.calls.get(module, ())]
        if not runs or module in self.uncounted:
            return None
        first = runs[0]
        if first is None or not all(run is not None and _same(run, first) for run in runs):
            return None
        (input_axis, along), (output_axis, _) = first
        if not self._owns_its_slots(module, set(along.tolist())) or not self._adapts(module):
            return None
        members = self.group_of[along]
        channels = {}
        for number in np.unique(members[members >= 0]).tolist():
            index = np.flatnonzero(members == number)
            channels[self.groups[number].name] = index, self._channels_of(self.groups[number], along[index])
        return Norm(module, input_axis, output_axis, along.size, channels)

    def _run(self, call: CountedCall, counted: set[int]) -> tuple[Run, Run] | None:
        """Where the counted channels run in the input and in the output of a call."""
        if call.input is None or call.output is None:
            return None
        into = self._only_axis(*call.input, counted)
        if into is None or not counted <= set(into[1].tolist()):
            return None
        members = {c for c in into[1].tolist() if self.group_of[c] >= 0}
        # No other axis of the input or the output may lose indices with these channels.
        into, out = (self._only_axis(*side, members) for side in (call.input, call.output))
        return (into, out) if into is not None and out is not None and np.array_equal(into[1], out[1]) else None

    def _only_axis(self, ndim: int, maps: Maps, channels: set[int]) -> Run | None:
        """The one axis along which some of ``channels`` run, and all channels along it."""
        found: Run | None = None
        for m in maps:
            along = self.comp[m.flat]
            if channels.isdisjoint(along.tolist()):
                continue
            run = -1 if m.axis == ndim - 1 else m.axis, along
            if not m.uniform or (found is not None and not _same_run(run, found)):
                return None
            found = run
        return found

    def _owns_its_slots(self, module: str, along: set[int]) -> bool:
        """Whether the tensors of the module that lose slots are its own parameters and lose them with its input."""
        for name, known in self._tensors_in(module):
            labels = self.trace.tensors[known]
            for axis in labels.axes:
                if axis is None:
                    continue
                lost = self.comp[axis]
                lost = lost[self.group_of[lost] >= 0]
                if not lost.size:
                    continue
                mine = name.rpartition(".")[0] == module and labels.info.is_parameter and labels.info.blocks == 1
                if not mine or not along.issuperset(lost.tolist()):
                    return False
        return True

    def _tensors_in(self, module: str) -> Iterable[tuple[str, str]]:
        """Names of tensors in a module, and the names that the trace knows them by."""
        inside = f"{module}."
        for name, known in self.names[bisect_left(self.names, (inside, "")) :]:
            if not name.startswith(inside):
                return
            yield name, known

    def _adapts(self, module: str) -> bool:
        """Whether nothing in the module depends on numbers of which only trying out tells whether they are right.

        Trying out compares a slim model with one in which this very code sees the kept channels alone, so that it
        would not tell.
        """
        inside = f"{module}."
        parts = [name for name in (*self.trace.calls, *self.numbered) if name.startswith(inside)]
        if any(name in self.numbered or self._sees_channels(name) for name in parts):
            return False
        if issubclass(self.trace.types[module], _NORMS):
            return True
        return not any(
            # A wrong shape raises.
            f"{question.reason.module}.".startswith(inside) and "native_layer_norm" not in question.reason.operation
            for question in self.trace.space.questions
        )

    def _sees_channels(self, module: str) -> bool:
        """Whether a module that holds numbers sees channels of groups: some of these may have to be corrected."""
        sides = (self.trace.calls[module].input, self.trace.calls[module].output)
        return any(
            labels is not None and (self.group_of[self.comp[labels]] >= 0).any()
            for side in sides
            for labels, _ in side or ()
        )

    def _channels_of(self, group: Group, along: np.ndarray) -> np.ndarray:
        """The numbers in their group of channels (k,)."""
        slots = group.slots[0]
        axis = self.trace.tensors[slots.tensor].axes[slots.axis]
        assert axis is not None
        channels = self.comp[axis[slots.index[:, 0]]]
        order = np.argsort(channels)
        return order[np.searchsorted(channels, along, sorter=order)]


def _same(a: tuple[Run, Run], b: tuple[Run, Run]) -> bool:
    return _same_run(a[0], b[0]) and _same_run(a[1], b[1])


def _same_run(a: Run, b: Run) -> bool:
    return a[0] == b[0] and np.array_equal(a[1], b[1])
