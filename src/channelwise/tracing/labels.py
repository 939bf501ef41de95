"""Integer labels for slots, and the record of which of them must be kept or removed together."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from channelwise.structure import Reason, Role
from channelwise.tracing.connections import components_of, forest_of, spanning_forest

LABEL = np.int32
"""The type of labels, of which there are as many as slots: every operation on a token or a channel makes arrays."""


@dataclass(frozen=True, eq=False)
class LabelMap:
    """Which label every index of one axis of a tensor has.

    ``labels`` has the tensor's number of dimensions and length 1 along every dimension it does not depend on, so it
    broadcasts to the tensor. ``axis`` is the dimension that gets shorter when a label is removed; along another
    dimension labels only vary in the weight of a grouped convolution, where each block of rows has its own columns.
    ``zero``: in a sparse model the tensor is exactly zero wherever the label has been removed.
    """

    labels: np.ndarray
    axis: int
    zero: bool

    @property
    def flat(self) -> np.ndarray:
        """All labels of the map, (k,)."""
        return self.labels.reshape(-1)

    @property
    def uniform(self) -> bool:
        """Whether the labels vary along ``axis`` only."""
        return self.labels.size == self.labels.shape[self.axis]

    def moved(self, labels: np.ndarray, axis: int) -> LabelMap:
        """The same knowledge about a rearranged tensor."""
        return LabelMap(labels, axis, self.zero)

    def with_zero(self, zero: bool) -> LabelMap:
        """The same labels with another statement about removed values."""
        return self if zero == self.zero else LabelMap(self.labels, self.axis, zero)


def along(labels: np.ndarray, axis: int, ndim: int, zero: bool) -> LabelMap:
    """A uniform map from labels (n,) that run along ``axis`` of a tensor with ``ndim`` dimensions."""
    shape = [1] * ndim
    shape[axis] = labels.size
    return LabelMap(labels.reshape(shape), axis, zero)


@dataclass(frozen=True, eq=False)
class EqualParts:
    """Every row of ``labels`` (parts, n) must keep the same number of labels."""

    labels: np.ndarray
    reason: Reason


@dataclass(frozen=True, eq=False)
class Question:
    """Labels touched by an operation whose numbers may be fixed in the user's code; verification answers it.

    ``whole``: all labels of the axis, if the operation picked these out of them.
    """

    labels: np.ndarray
    reason: Reason
    whole: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class TwoStay:
    """Of every row of ``labels`` (rows, n), the slots of one axis, two must stay: of length 1 it would be another."""

    labels: np.ndarray
    reason: Reason


_FEW = 4
"""Fewer pairs for each label are left as they are."""

_MANY = 4096
"""Fewer pairs than that are recorded as they come, which is quicker."""


@dataclass
class LabelSpace:
    """Allocates labels and records what a trace learns about them. Recording only appends; nothing is solved here.

    ``solved``: how much was recorded when it was solved last, and what came out.
    """

    count: int = 0
    pairs: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    reasons: dict[int, Reason] = field(default_factory=dict)
    inexact: list[tuple[np.ndarray, Reason]] = field(default_factory=list)
    parts: list[EqualParts] = field(default_factory=list)
    two_stay: list[TwoStay] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    roles: list[tuple[np.ndarray, Role]] = field(default_factory=list)
    solved: tuple[tuple[int, int], np.ndarray] | None = None
    _reason_nodes: dict[Reason, int] = field(default_factory=dict)

    def copy(self) -> LabelSpace:
        """Another space with the same records, to which more can be added."""
        twin = replace(self)
        for name in ("pairs", "inexact", "parts", "two_stay", "questions", "roles"):
            setattr(twin, name, list(getattr(self, name)))
        twin.reasons, twin._reason_nodes = dict(self.reasons), dict(self._reason_nodes)
        return twin

    def new(self, n: int) -> np.ndarray:
        """``n`` fresh labels, (n,)."""
        labels = np.arange(self.count, self.count + n, dtype=LABEL)
        self.count += n
        return labels

    def join(self, a: np.ndarray, b: np.ndarray) -> None:
        """Labels that meet, element by element after broadcasting, belong to one channel."""
        if a is b:
            return
        a, b = np.broadcast_arrays(a, b)
        self._connect(a.reshape(-1), b.reshape(-1))

    def frozen_label(self, reason: Reason) -> int:
        """A label that stays, for whatever is connected to it stays, for this reason."""
        node = self._reason_nodes.get(reason)
        if node is None:
            node = self._reason_nodes[reason] = int(self.new(1)[0])
            self.reasons[node] = reason
        return node

    def freeze(self, labels: np.ndarray, reason: Reason) -> None:
        """These labels stay."""
        flat = labels.reshape(-1)
        self._connect(flat, np.broadcast_to(LABEL(self.frozen_label(reason)), flat.shape))

    def _connect(self, a: np.ndarray, b: np.ndarray) -> None:
        """Record pairs, many only as far as they say anything new: an axis merged of two repeats the labels of both."""
        self.pairs.append(spanning_forest(a, b, self.count) if a.size > _MANY else (a, b))

    def tie(self, labels: np.ndarray, axis: int) -> np.ndarray:
        """Join all labels along ``axis``; returns the labels with that axis reduced to length 1."""
        first = np.take(labels, [0], axis)
        if labels.shape[axis] > 1:
            self.join(labels, first)
        return first

    def require_equal_parts(self, labels: np.ndarray, reason: Reason) -> None:
        """Rows of ``labels`` (parts, n) must keep equally many."""
        if labels.shape[0] > 1:
            self.parts.append(EqualParts(labels, reason))

    def keep_two(self, m: LabelMap, reason: Reason) -> None:
        """The axis of a map keeps a length of 2 at least."""
        rows = np.moveaxis(m.labels, m.axis, -1).reshape(-1, m.labels.shape[m.axis])
        self.two_stay.append(TwoStay(np.unique(rows, axis=0), reason))

    def mark_inexact(self, labels: np.ndarray, reason: Reason) -> None:
        """Zeroing these labels is not the same as removing them."""
        self.inexact.append((labels.reshape(-1), reason))

    def ask(self, labels: np.ndarray, reason: Reason, whole: np.ndarray | None = None) -> None:
        """Whether the user's code adapts when these labels are removed has to be verified."""
        self.questions.append(Question(labels.reshape(-1), reason, whole))

    def mark_role(self, labels: np.ndarray, role: Role) -> None:
        """What the slots with these labels do in their layer."""
        self.roles.append((labels.reshape(-1), role))

    def all_pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """All recorded pairs as two arrays (k,)."""
        if not self.pairs:
            return np.zeros(0, LABEL), np.zeros(0, LABEL)
        return np.concatenate([a for a, _ in self.pairs]), np.concatenate([b for _, b in self.pairs])

    def components(self) -> np.ndarray:
        """The component (channel) of every label, (labels,)."""
        size = (len(self.pairs), self.count)
        if self.solved is None or self.solved[0] != size:
            self.solved = size, components_of(self.all_pairs(), self.count)
        return self.solved[1]

    def condense(self) -> None:
        """Replace the recorded pairs by as few as say the same, if that saves memory for the next pass."""
        if sum(a.size for a, _ in self.pairs) < _FEW * self.count:
            return
        channel = self.components()
        first, others = forest_of(channel)
        self.pairs[:] = [(first.astype(LABEL), others.astype(LABEL))]
        self.solved = (len(self.pairs), self.count), channel
