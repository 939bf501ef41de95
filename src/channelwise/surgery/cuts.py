"""Which slots of every tensor stay when the groups keep some of their channels: one rule for surgery and supernets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from channelwise.errors import InvalidArgumentError
from channelwise.once import once_each
from channelwise.selection import Selection, removed_channels
from channelwise.structure import NormedWeight, Structure, TensorInfo


@dataclass(frozen=True)
class Cut:
    """What stays of one tensor.

    ``kept`` maps an axis to its kept slots, sorted; an axis that is not named stays whole. With ``info.blocks > 1``
    axis 1 counts slots of all blocks, see `TensorInfo`, and if it is named ``columns`` says which columns every kept
    row keeps, shape (rows kept, columns kept).
    """

    info: TensorInfo
    kept: Mapping[int, np.ndarray]
    columns: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the slim tensor."""
        shape = [len(self.kept[a]) if a in self.kept else n for a, n in enumerate(self.info.shape)]
        if self.columns is not None:
            shape[1] = self.columns.shape[1]
        return tuple(shape)

    @property
    def rows(self) -> np.ndarray:
        """Kept slots along axis 0."""
        return self.kept.get(0, np.arange(self.info.shape[0]))

    @property
    def axes(self) -> dict[int, np.ndarray]:
        """The axes that keep the same slots throughout the tensor, with these slots."""
        return {axis: slots for axis, slots in self.kept.items() if axis != 1 or self.columns is None}


@dataclass(frozen=True)
class Cuts:
    """What stays of every tensor that a selection touches; plain data that pickles.

    ``tensors`` is keyed by the structure's tensor names; ``shapes`` covers the untouched tensors too. ``numbers`` are
    the attributes of modules that follow the channels, as they are in the slim model. ``normed``: see `NormedWeight`.
    """

    tensors: Mapping[str, Cut]
    shapes: Mapping[str, tuple[int, ...]]
    aliases: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    normed: tuple[NormedWeight, ...] = ()

    def __deepcopy__(self, memo: Any) -> Cuts:
        return self

    def of(self, name: str) -> Cut | None:
        """The cut of a tensor by any of its names, None if all of it stays."""
        return self.tensors.get(self.aliases.get(name, name))

    def shape_of(self, name: str) -> tuple[int, ...] | None:
        """The original shape of a tensor by any of its names, None if the trace does not know it."""
        return self.shapes.get(self.aliases.get(name, name))


@dataclass(frozen=True, eq=False)
class Owners:
    """The channels that the slots of one tensor belong to.

    ``axes`` maps an axis to numbers (slots,): the channels of all groups are numbered one after the other, and a slot
    that belongs to none has the number behind the last. Axes that are not named belong to no group.
    """

    info: TensorInfo
    axes: Mapping[int, np.ndarray]


@once_each
def owners(structure: Structure) -> dict[str, Owners]:
    """The owners of all tensors that have channels, by name. Axes that are laid out alike share one array."""
    axes: dict[str, dict[int, np.ndarray]] = {}
    nobody = sum(group.size for group in structure.groups)
    first = 0
    for group in structure.groups:
        channels = np.arange(first, first + group.size)[:, None]
        first += group.size
        for slots in group.slots:
            of_tensor = axes.setdefault(slots.tensor, {})
            if slots.axis not in of_tensor:
                of_tensor[slots.axis] = np.full(structure.tensors[slots.tensor].slots(slots.axis), nobody)
            of_tensor[slots.axis][slots.index] = channels
    shared: dict[bytes, np.ndarray] = {}
    return {
        name: Owners(
            structure.tensors[name],
            {axis: shared.setdefault(numbers.tobytes(), numbers) for axis, numbers in of_tensor.items()},
        )
        for name, of_tensor in axes.items()
    }


class Stays:
    """Which slots of every tensor stay when these channels do: ``channels`` (channels of all groups,) of bool."""

    def __init__(self, channels: np.ndarray) -> None:
        self._channels = np.append(channels, True)
        # The tensors of a batch norm and its neighbours are laid out alike.
        self._known: dict[int, np.ndarray | None] = {}

    def cut(self, tensor: Owners) -> Cut | None:
        """What stays of a tensor, None if all of it does.

        Raises:
            InvalidArgumentError: the blocks of a grouped convolution would keep different numbers of columns.
        """
        kept = {axis: slots for axis, of in tensor.axes.items() if (slots := self._slots(of)) is not None}
        if not kept:
            return None
        return Cut(tensor.info, kept, _columns(tensor.info, kept) if tensor.info.blocks > 1 and 1 in kept else None)

    def _slots(self, numbers: np.ndarray) -> np.ndarray | None:
        """The slots of an axis that stay, None if all do."""
        key = id(numbers)
        if key not in self._known:
            stay = self._channels[numbers]
            self._known[key] = None if stay.all() else np.flatnonzero(stay)
        return self._known[key]


def _columns(info: TensorInfo, kept: Mapping[int, np.ndarray]) -> np.ndarray:
    """The kept columns of every kept row of a blocked tensor (rows kept, columns kept)."""
    block = kept.get(0, np.arange(info.shape[0])) // (info.shape[0] // info.blocks)
    blocks, row = np.unique(block, return_inverse=True)
    stay = np.zeros(info.blocks * info.shape[1], bool)
    stay[kept[1]] = True
    columns = stay.reshape(info.blocks, -1)[blocks]
    counts = columns.sum(axis=1)
    if len(set(counts.tolist())) > 1:
        raise InvalidArgumentError(
            f"the blocks of {info.name} must keep equally many columns, the selection keeps {counts.tolist()}"
        )
    return np.nonzero(columns)[1].reshape(len(blocks), -1)[row]


def cut_tensors(structure: Structure, selection: Selection) -> Cuts:
    """What stays of every tensor: all of its slots but those of removed channels.

    Raises:
        InvalidArgumentError: the selection does not fit the structure.
    """
    removed = removed_channels(structure, selection)
    channels = [np.ones(group.size, bool) for group in structure.groups]
    for group, stay in zip(structure.groups, channels, strict=True):
        stay[removed.get(group.name, [])] = False
    stays = Stays(np.concatenate([np.zeros(0, bool), *channels]))
    cuts = {name: cut for name, tensor in owners(structure).items() if (cut := stays.cut(tensor)) is not None}
    counts = selection.counts()
    numbers: dict[str, dict[str, int]] = {}
    for number in structure.numbers:
        numbers.setdefault(number.module, {})[number.attribute] = number.size(counts)
    shapes = {name: tuple(info.shape) for name, info in structure.tensors.items()}
    return Cuts(cuts, shapes, dict(structure.aliases), numbers, structure.normed)
