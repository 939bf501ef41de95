"""The channels that a selection removes; what a selection of a structure has to be is checked here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from channelwise.errors import InvalidArgumentError
from channelwise.graph.structure import Group, Structure, unknown_group
from channelwise.modelcheck import describe

if TYPE_CHECKING:
    from channelwise.selection import Selection


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
