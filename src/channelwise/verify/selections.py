"""Which channels verification removes to see whether the user's code adapts: three unlike selections."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum

import numpy as np

from channelwise.structure import Group, Structure

Kept = Mapping[str, np.ndarray]
"""By group, the channels that are kept, sorted."""


class Pattern(Enum):
    """Which channels of a group stay."""

    UPPER = 0
    """Neither the first nor the last, and most of the upper half: code that picks by position shows."""
    FEW = 1
    """Two or three of one end, which differs from group to group: those next to any border change sides, and numbers in
    the code become larger than what is left."""
    EQUAL = 2
    """Two of one end in every group: code may do something else where two groups are equally wide."""


def kept_channels(structure: Structure, names: Iterable[str], pattern: Pattern) -> dict[str, np.ndarray]:
    """What is kept of every group: all of it, unless it is among ``names``.

    Groups lose differently many, and which of two keeps more differs between the selections: code may need two groups
    to keep as many channels without saying so.
    """
    wanted = set(names)
    kept = {}
    for position, group in enumerate(structure.groups):
        if group.name not in wanted:
            kept[group.name] = np.arange(group.size)
            continue
        # A generator for each group, so that a group loses the same channels whichever others are removed with it.
        random = np.random.default_rng([pattern.value, position])
        # Multiples of the golden ratio: neighbours, which are the ones that meet, are far apart.
        place = position * 0.618034 % 1
        kept[group.name] = _kept(group, random, pattern, place, position)
    return kept


def _kept(group: Group, random: np.random.Generator, pattern: Pattern, place: float, at: int) -> np.ndarray:
    chosen = []
    for members in group.members:
        if pattern is Pattern.UPPER:
            some = _upper(members, random, 0.3 + 0.5 * place)
        else:
            count = 3 if pattern is Pattern.FEW and place < 0.5 else 2
            count = min(count, members.size - 1 or 1)
            some = members[-count:] if at % 2 else members[:count]
        more = np.setdiff1d(members, some)[: max(group.least - len(some), 0)]
        chosen.append(np.concatenate([some, more]))
    return np.sort(np.concatenate(chosen))


def _upper(members: np.ndarray, random: np.random.Generator, share: float) -> np.ndarray:
    inner = members[1:-1] if members.size > 2 else members[1:]
    # An odd number, so that halves show; one alone would be laid out in another way.
    count = min(max(int(members.size * share) | 1, 3 if inner.size > 2 else 2), inner.size)
    return random.choice(inner[-(count + 1) :], count, replace=False)
