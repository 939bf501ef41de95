"""A selection: for every channel group, which channels are kept; and what it removes, checked in one place."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from channelwise.errors import InvalidArgumentError
from channelwise.inputs.check import describe
from channelwise.structure import Group, Network, Structure, network_of, unknown_group

_ROWS = 40


@dataclass(frozen=True, eq=False)
class Selection:
    """The channels that stay; printed, a short table.

    ``kept`` maps every group's name to sorted indices, int64 of shape (kept channels,). ``network`` is the one that
    they were selected in, and no other takes them; with None, as in a selection made by hand, every network does whose
    groups fit. Selections that keep the same are equal.
    """

    kept: Mapping[str, np.ndarray]
    network: Network | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.kept, Mapping):
            raise InvalidArgumentError(
                f"A selection is made of channel indices by the name of the group, not of {describe(self.kept)}."
            )
        kept = {}
        for name, indices in self.kept.items():
            if not isinstance(name, str):
                raise InvalidArgumentError(f"A selection has names of groups as its keys, not {describe(name)}.")
            try:
                array = np.array(indices)
            except (TypeError, ValueError) as error:  # lists of several lengths, tensors without values or on a GPU
                raise InvalidArgumentError(
                    f"The selection of {name!r} must be a list of channel indices, not {describe(indices)}."
                ) from error
            if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iu":
                raise InvalidArgumentError(f"The selection of {name!r} must be a list of at least one channel index.")
            if array.min() < 0 or (np.diff(array) <= 0).any():
                raise InvalidArgumentError(f"The selection of {name!r} must ascend from 0 up, each channel once.")
            kept[name] = array.astype(np.int64)
            kept[name].setflags(write=False)
        object.__setattr__(self, "kept", kept)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Selection):
            return NotImplemented
        return self.kept.keys() == other.kept.keys() and all(
            np.array_equal(indices, other.kept[name]) for name, indices in self.kept.items()
        )

    def __hash__(self) -> int:
        return hash(frozenset((name, indices.tobytes()) for name, indices in self.kept.items()))

    def __reduce__(self) -> Any:
        return Selection, (dict(self.kept), self.network)

    def of(self, structure: Structure) -> Selection:
        """The same channels, as a selection in the network that was traced."""
        return Selection(self.kept, network_of(structure))

    def __str__(self) -> str:
        """A short table: the groups, how many channels each keeps and, while the structure is there, of how many."""
        return "\n".join([f"keeps {self._total()}", *_rows(self.counts(), self._sizes())])

    def __repr__(self) -> str:
        return f"<Selection: {self._total()}>"

    def _total(self) -> str:
        sizes = self._sizes()
        of = "" if sizes is None else f" of {sum(sizes.values()):,}"
        return (
            f"{sum(self.counts().values()):,}{of} channels in {len(self.kept)} group{'s' if len(self.kept) > 1 else ''}"
        )

    def _sizes(self) -> dict[str, int] | None:
        known = self.__dict__.get("_fits")
        structure = None if known is None else known()
        return None if structure is None else structure.full()

    def counts(self) -> dict[str, int]:
        """How many channels every group keeps."""
        return {name: len(indices) for name, indices in self.kept.items()}

    def check(self, structure: Structure) -> Selection:
        """Itself, if it selects in exactly the groups of ``structure``, in each what may go together.

        Raises InvalidArgumentError otherwise, naming the group, or what differs from the network it was made in.
        """
        known = self.__dict__.get("_fits")
        if known is None or known() is not structure:
            removed_channels(structure, self)
            # A selection does not change, and counting with it is quick the next time.
            object.__setattr__(self, "_fits", weakref.ref(structure))
        return self

    def to_json(self) -> dict[str, Any]:
        """Plain lists and integers: ``{"kept": {group: [index, ...]}}``, and with "network" which one it is of."""
        plain: dict[str, Any] = {"kept": {name: indices.tolist() for name, indices in self.kept.items()}}
        if self.network is not None:
            shapes = {name: list(shape) for name, shape in self.network.tensors.items()}
            plain["network"] = {"digest": self.network.digest, "tensors": shapes}
        return plain

    @classmethod
    def from_json(cls, data: Any, structure: Structure | None = None) -> Selection:
        """The selection that ``to_json`` wrote; checked against ``structure`` (or a graph) if it is given.

        Raises InvalidArgumentError that names the group and what is wrong with it.
        """
        kept = data.get("kept") if isinstance(data, Mapping) else None
        if not isinstance(kept, Mapping):
            raise InvalidArgumentError("A selection is an object with the key 'kept': channel indices by group name.")
        for name, indices in kept.items():
            plain = isinstance(indices, list) and all(isinstance(i, int) and not isinstance(i, bool) for i in indices)
            if not plain:
                raise InvalidArgumentError(f"The selection of {name!r} must be a list of integers.")
        selection = cls(kept, _network(data.get("network")))
        structure = getattr(structure, "structure", structure)
        return selection if structure is None else selection.check(structure)

    @classmethod
    def full(cls, structure: Structure) -> Selection:
        """Everything kept."""
        return cls({g.name: np.arange(g.size) for g in structure.groups}, network_of(structure))


def _network(data: Any) -> Network | None:
    if data is None:
        return None
    digest, tensors = (data.get("digest"), data.get("tensors")) if isinstance(data, Mapping) else (None, None)
    if (
        not isinstance(digest, str)
        or not isinstance(tensors, Mapping)
        or not all(isinstance(s, list) and all(type(n) is int for n in s) for s in tensors.values())
    ):
        raise InvalidArgumentError(
            "The 'network' of a selection is an object with its 'digest' and 'tensors', shapes by name. "
            "Without 'network' the selection is accepted wherever its groups fit."
        )
    return Network(digest, {name: tuple(shape) for name, shape in tensors.items()})


def _rows(kept: Mapping[str, int], sizes: Mapping[str, int] | None) -> list[str]:
    shown = list(kept)[:_ROWS]
    wide = max(map(len, shown), default=0)
    share = lambda name: "" if sizes is None else f" of {sizes[name]:>6,} {kept[name] / sizes[name]:>6.0%}"  # noqa: E731
    rows = [f"{name:<{wide}} {kept[name]:>6,}{share(name)}" for name in shown]
    return rows if len(kept) == len(shown) else [*rows, f"and {len(kept) - len(shown)} more"]


def removed_channels(structure: Structure, selection: Selection) -> dict[str, np.ndarray]:
    """Group name -> sorted indices of the channels to remove, only for groups that lose any.

    Raises:
        InvalidArgumentError: the selection is not one of this structure; the message names the group.
    """
    if not isinstance(getattr(selection, "kept", None), Mapping):
        raise InvalidArgumentError(
            f"A selection is needed, as graph.select(...) returns it, not {describe(selection)}; "
            "channelwise.Selection({group: indices}) makes one by hand."
        )
    if not isinstance(structure, Structure):
        raise InvalidArgumentError(f"A selection is checked against graph.structure, not {describe(structure)}.")
    network = getattr(selection, "network", None)
    if network is not None and (difference := network.difference(network_of(structure))):
        raise InvalidArgumentError(
            f"The selection is of another network: {difference}. Select in this one, or, if the channels are meant, "
            "give channelwise.Selection(selection.kept)."
        )
    names = {group.name for group in structure.groups}
    for name in selection.kept:
        if name not in names:
            raise InvalidArgumentError(unknown_group(structure, name, "The selection"))
    removed = {}
    for group in structure.groups:
        if group.name not in selection.kept:
            raise InvalidArgumentError(
                f"The selection says nothing about the group {group.name!r}; every group must be there."
            )
        lost = _complement(group, np.asarray(selection.kept[group.name]))
        if len(lost):
            _check_counts(group, lost)
            removed[group.name] = lost
    return removed


def _complement(group: Group, kept: np.ndarray) -> np.ndarray:
    if len(kept) and (kept.dtype.kind not in "iu" or kept.min() < 0 or kept.max() >= group.size):
        raise InvalidArgumentError(
            f"The group {group.name!r} has channels 0 to {group.size - 1}; "
            f"the selection keeps {', '.join(map(str, kept[-8:]))}."
        )
    gone = np.ones(group.size, dtype=bool)
    gone[kept.astype(np.int64, copy=False)] = False
    lost = np.flatnonzero(gone)
    if len(lost) == group.size:
        raise InvalidArgumentError(f"The selection removes every channel of the group {group.name!r}; one must stay.")
    if len(lost) + len(kept) != group.size:
        raise InvalidArgumentError(f"The selection names channels of the group {group.name!r} more than once.")
    return lost


def _check_counts(group: Group, lost: np.ndarray) -> None:
    counts = [len(part) - int(np.isin(part, lost).sum()) for part in group.members]
    if len(set(counts)) > 1:
        raise InvalidArgumentError(
            f"The parts of the group {group.name!r} must keep equally many channels; the selection keeps {counts}."
        )
    if counts[0] < group.least:
        raise InvalidArgumentError(
            f"The selection keeps {sum(counts)} channels of the group {group.name!r}, of which "
            f"{group.least * len(counts)} must stay: {group.least_because}."
        )
