"""The first difference between the program of a full model, with labels deleted, and that of a slim one.

By induction over the rules, equal programs compute equal outputs: what is compared are the operations, the numbers they
compute with, and which channels lie where. Values are not looked at.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from channelwise.tracing.connections import components_of
from channelwise.tracing.labels import LabelSpace
from channelwise.tracing.program import UNTOLD, Operation, Program, Result

_SLICE = "aten.slice"

NEW = -1
"""Stands for labels that a run made for what is equal along an axis."""


@dataclass(frozen=True)
class Difference:
    """What is different first: ``kind``, in words, the operator and its module, and the channels that show it."""

    kind: str
    text: str
    operation: str = ""
    module: str = ""
    channels: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Deletion:
    """Which labels of the full program are not there in the slim one.

    ``channel`` (labels,) is the channel of every label. Of the channels, ``gone`` are removed, and ``stay`` those that
    must stay or are alone on their axes, which a slim run does not tell apart.
    """

    channel: np.ndarray
    gone: np.ndarray
    stay: np.ndarray

    def channels(self, labels: np.ndarray) -> np.ndarray:
        """The channel of every label; `NEW` for those that a run made."""
        new = labels >= len(self.channel)
        return np.where(new, NEW, self.channel[np.where(new, 0, labels)])

    def left(self, labels: np.ndarray) -> np.ndarray:
        """A run of labels without those whose channels are gone."""
        channels = self.channels(labels)
        return labels[(channels == NEW) | ~self.gone[channels]]


def first_difference(
    full: Program, slim: Program, deletion: Deletion, *, numbers: bool = True, counting: Collection[str] = ()
) -> Difference | None:
    """The first difference between both programs, None if they are the same but for what is deleted.

    Arguments:
        numbers: whether numbers and constants that operations compute with are compared, too.
        counting: modules that count channels, in which numbers differ rightly.
    """
    comparer = _Comparer(full, slim, deletion)
    for one, other in _side_by_side(full.operations, slim.operations):
        found = comparer.compare(one, other, numbers and not _inside(one, counting))
        if found is not None:
            return found
    return None


def first_meeting(space: LabelSpace, deletion: Deletion) -> Difference | None:
    """Channels that meet in the slim run, by the records of its ``space``, and did not in the full one."""
    # The channels, and behind them the labels that the run made.
    known, channels = len(deletion.channel), len(deletion.gone)
    node = np.concatenate([deletion.channel, np.arange(channels, channels + space.count - known)])
    one, other = space.all_pairs()
    count = channels + space.count - known
    together = components_of((node[one], node[other]), count)
    stays = np.zeros(count, bool)
    stays[:channels] = deletion.stay
    stays[node[list(space.reasons)]] = True
    kept = np.zeros(int(together.max(initial=0)) + 1, bool)
    kept[together[stays]] = True
    free = np.flatnonzero(~deletion.stay)
    crowd = np.bincount(together[free], minlength=kept.size)
    guilty = free[kept[together[free]] | (crowd[together[free]] > 1)]
    if not guilty.size:
        return None
    return Difference("meeting", "other channels meet than before", channels=tuple(guilty.tolist()))


def _side_by_side(
    full: Sequence[Operation], slim: Sequence[Operation]
) -> Iterator[tuple[Operation | None, Operation | None]]:
    """The operations of both in pairs. A slice may be there in one alone: along labels of one channel."""
    first, second = 0, 0
    while first < len(full) or second < len(slim):
        one = full[first] if first < len(full) else None
        other = slim[second] if second < len(slim) else None
        alike = one is not None and other is not None and (one.name, one.module) == (other.name, other.module)
        if not alike and one is not None and one.name == _SLICE:
            first += 1
        elif not alike and other is not None and other.name == _SLICE:
            second += 1
        else:
            yield one, other
            first, second = first + 1, second + 1


def _inside(operation: Operation | None, modules: Collection[str]) -> bool:
    return operation is not None and any(f"{operation.module}.".startswith(f"{module}.") for module in modules)


class _Comparer:
    """Compares operation by operation; runs of labels are deleted once."""

    def __init__(self, full: Program, slim: Program, deletion: Deletion) -> None:
        self.full, self.slim, self.deletion = full, slim, deletion
        self.left: dict[int, np.ndarray] = {}
        self.same: set[tuple[int, int]] = set()

    def compare(self, one: Operation | None, other: Operation | None, numbers: bool) -> Difference | None:
        """What is different about two operations."""
        if one is None or other is None or (one.name, one.module) != (other.name, other.module):
            return self._differ("operation", one or other, "another operation runs", one)
        if numbers and one.numbers != other.numbers:
            return self._differ("number", one, f"{one.name} computes with other numbers", one)
        if numbers and self._constants_differ(one, other):
            return self._differ("constant", one, f"{one.name} meets a constant with other values", one)
        if len(one.results) != len(other.results):
            return self._differ("operation", one, f"{one.name} gives another number of tensors", one)
        for first, second in zip(one.results, other.results, strict=True):
            found = self._compare_results(one, first, second)
            if found is not None:
                return found
        return None

    def _constants_differ(self, one: Operation, other: Operation) -> bool:
        return any(
            (a[0] == b[0] and a != b) or (a[1] != b[1] and a[1].startswith(b"all") and b[1].startswith(b"all"))
            for a, b in zip(one.constants, other.constants, strict=False)
        )

    def _compare_results(self, operation: Operation, one: Result, other: Result) -> Difference | None:
        if len(one.shape) != len(other.shape):
            return self._differ("size", operation, f"{operation.name} gives another number of axes", operation)
        labelled, found = dict(one.runs), dict(other.runs)
        for axis, length in enumerate(one.shape):
            if axis not in labelled:
                if one.follows and length != other.shape[axis] and length != 1:
                    return self._differ("size", operation, f"{operation.name} gives another size", operation)
                continue
            if labelled[axis] == UNTOLD:
                continue
            want = self._left(labelled[axis])
            if NEW in want:
                continue
            if other.shape[axis] != want.size:
                return self._differ("size", operation, f"{operation.name} gives another size", operation, want)
            if found.get(axis, UNTOLD) != UNTOLD and not self._same_run(labelled[axis], found[axis]):
                got = self.deletion.channels(self.slim.runs[found[axis]])
                wrong = self._wrong(want, got)
                text = f"{operation.name} gives other channels"
                return self._differ("channels", operation, text, operation, np.concatenate([want[wrong], got[wrong]]))
        return None

    def _left(self, number: int) -> np.ndarray:
        if number not in self.left:
            self.left[number] = self.deletion.channels(self.deletion.left(self.full.runs[number]))
        return self.left[number]

    def _same_run(self, number: int, other: int) -> bool:
        if (number, other) in self.same:
            return True
        if not self._wrong(self._left(number), self.deletion.channels(self.slim.runs[other])).any():
            self.same.add((number, other))
            return True
        return False

    def _wrong(self, want: np.ndarray, got: np.ndarray) -> np.ndarray:
        """Where a run has another channel; new labels are of what stays, or of what is equal along the axis."""
        stay = self.deletion.stay
        return (got != want) & (got != NEW) & ~(stay[got] & stay[want])

    def _differ(
        self,
        kind: str,
        shown: Operation | None,
        text: str,
        blamed: Operation | None,
        channels: np.ndarray | None = None,
    ) -> Difference:
        """A difference; without channels that show it, those of the operation's results are named."""
        if channels is None and blamed is not None:
            runs = [
                self.full.runs[number] for result in blamed.results for _, number in result.runs if number != UNTOLD
            ]
            channels = self.deletion.channels(np.concatenate(runs)) if runs else None
        named = () if channels is None else tuple(np.unique(channels[channels != NEW]).tolist())
        return Difference(kind, text, shown.name if shown else "", shown.module if shown else "", named)
