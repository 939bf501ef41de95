"""Which channels a candidate keeps, in a few bytes: what a search stores and what workers are sent."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import numpy as np

from channelwise.errors import InvalidArgumentError, ResultsFileError
from channelwise.selection import Selection
from channelwise.structure import Structure


def pack(selection: Selection, structure: Structure) -> dict[str, str]:
    """By group that loses channels: a bit for every channel, in base64."""
    packed = {}
    for group in structure.groups:
        kept = selection.kept[group.name]
        if len(kept) < group.size:
            mask = np.zeros(group.size, bool)
            mask[kept] = True
            packed[group.name] = base64.b64encode(np.packbits(mask).tobytes()).decode()
    return packed


def unpack(packed: Any, structure: Structure, where: str) -> Selection:
    """The inverse of `pack`; groups may be given as arrays of indices, too.

    Raises ResultsFileError naming ``where`` if it is damaged.
    """
    sizes = structure.full()
    kept = {name: np.arange(size) for name, size in sizes.items()}
    if not isinstance(packed, Mapping) or not packed.keys() <= sizes.keys():
        raise ResultsFileError(f"{where} does not say which channels the candidate keeps, or of other groups.")
    try:
        for name, value in packed.items():
            kept[name] = value if isinstance(value, np.ndarray) else _indices(value, sizes[name])
        return Selection(kept).check(structure)
    except (binascii.Error, ValueError, TypeError, InvalidArgumentError) as error:
        raise ResultsFileError(f"{where} is damaged: the channels of a candidate cannot be read ({error}).") from error


def _indices(text: str, size: int) -> np.ndarray:
    data = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    if len(data) != -(-size // 8):
        raise ValueError(f"{len(data)} bytes for {size} channels")
    return np.flatnonzero(np.unpackbits(data, count=size))
