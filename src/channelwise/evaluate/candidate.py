"""A candidate in its three forms, and the conversions between them.

- *Counts*: how many channels each group keeps, by name. A search proposes counts.
- A *selection*: which channels each group keeps. `Chooser` takes the best of every group.
- *Packed*: a bit for every channel of the groups that lose some. Searches store this, and workers are sent it.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch

from channelwise.api import ChannelGraph
from channelwise.errors import InvalidArgumentError, ResultsFileError
from channelwise.ranking import Criterion, Weights, comparable, scores
from channelwise.select.channels import choose, dead_channels
from channelwise.selection import Selection
from channelwise.structure import Group, Structure

Counts = Mapping[str, int]
Packed = Mapping[str, str]
NOTE = "kept"
"""What the notes of a search call the packed selection of a candidate."""


class Chooser:
    """From counts to a selection, by one ranking for all candidates of a model with its present weights.

    ``ranking`` is called at first use and returns the criterion, bound to the model: a ranking by gradients takes a
    pass over images, and a finished search needs none.
    """

    def __init__(self, graph: ChannelGraph, ranking: Callable[[], Criterion]) -> None:
        self.structure = graph.structure
        self.weights = Weights.of(graph.tensors(), graph.structure)
        self.dead = dead_channels(graph.structure, self.weights)
        self._ranking = ranking

    @cached_property
    def criterion(self) -> Criterion:
        """The ranking; it scores every group once."""
        return _Remembered(self._ranking())

    def __call__(self, counts: Counts) -> Selection:
        """The best channels for these counts; groups left out stay full."""
        return choose(self.structure, self.weights, counts, self.criterion, dead=self.dead)


def pack(selection: Selection, structure: Structure) -> dict[str, str]:
    """By group that loses channels: a bit for every channel, in base64."""
    packed = {}
    for group in structure.groups:
        channels = selection.kept[group.name]
        if len(channels) < group.size:
            mask = np.zeros(group.size, bool)
            mask[channels] = True
            packed[group.name] = base64.b64encode(np.packbits(mask).tobytes()).decode()
    return packed


def unpack(packed: Any, structure: Structure, where: str) -> Selection:
    """The selection that was packed. Raises ResultsFileError naming ``where`` if it is damaged."""
    sizes = structure.full()
    channels = {name: np.arange(size) for name, size in sizes.items()}
    if not isinstance(packed, Mapping) or not packed.keys() <= sizes.keys():
        raise ResultsFileError(f"{where} does not say which channels the candidate keeps, or of other groups.")
    try:
        channels.update({name: _indices(bits, sizes[name]) for name, bits in packed.items()})
        return Selection(channels).of(structure).check(structure)
    except (binascii.Error, ValueError, TypeError, InvalidArgumentError) as error:
        raise ResultsFileError(f"{where} is damaged: the channels of a candidate cannot be read ({error}).") from error


def _indices(bits: str, size: int) -> np.ndarray:
    data = np.frombuffer(base64.b64decode(bits, validate=True), np.uint8)
    if len(data) != -(-size // 8):
        raise ValueError(f"{len(data)} bytes for {size} channels")
    return np.flatnonzero(np.unpackbits(data, count=size))


class _Remembered:
    """A criterion that scores every group once."""

    def __init__(self, criterion: Criterion) -> None:
        self.__name__ = getattr(criterion, "__name__", type(criterion).__name__)
        self.comparable = comparable(criterion)
        self._criterion = criterion
        self._known: dict[str, np.ndarray] = {}

    def __call__(self, group: Group, tensors: Mapping[str, torch.Tensor]) -> np.ndarray:
        if group.name not in self._known:
            self._known[group.name] = scores(self._criterion, group, tensors)
        return self._known[group.name]
