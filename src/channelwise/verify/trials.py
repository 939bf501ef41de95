"""Which channels verification removes to see whether the user's code adapts: several selections, none like another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from channelwise.structure import Group, Structure
from channelwise.verify.questions import Use

Kept = Mapping[str, np.ndarray]

_TRIALS = {Use.PICKED: ((4, 12), (16, 7)), Use.READ: ((4, 12), (16, 7)), Use.COUNTED: ((16, 2),)}
"""At most so many outputs of a layer, so many trials: of few, code may pick the right ones by chance, or their values
tell nothing, as all of them are positive, for example. Else one trial shows a wrong number."""

_OF_MANY = 2
"""Trials where code picks out of more slots than that: one keeps what the other removes."""


def trials(structure: Structure, uses: Mapping[str, Use]) -> list[int]:
    """The selections that must be right before these groups are believed: the more, the fewer slots they have."""
    usual, count = 1, 1
    few = []
    for group in structure.groups:
        if group.name in uses:
            most = _OF_MANY if uses[group.name] is Use.PICKED else 1
            slots = min((s.index.size for s in group.slots if s.role == "output"), default=group.size)
            wanted = next((trials for size, trials in _TRIALS[uses[group.name]] if slots <= size), 0)
            few += [group.name] if wanted else []
            usual, count = max(usual, most), max(count, wanted, most)
    found = list(range(usual))
    seen = {_kept_of(structure, few, trial) for trial in found}
    for trial in range(usual, count):
        # Of two channels there are only so many selections.
        kept = _kept_of(structure, few, trial)
        if kept not in seen:
            seen.add(kept)
            found.append(trial)
    return found


def _kept_of(structure: Structure, names: Sequence[str], trial: int) -> tuple[tuple[int, ...], ...]:
    kept = removed_in(structure, names, trial)
    return tuple(tuple(kept[name].tolist()) for name in names)


def removed_in(structure: Structure, names: Iterable[str], trial: int) -> dict[str, np.ndarray]:
    """What is kept of every group in a trial: all of it, unless it is among ``names``."""
    wanted = set(names)
    kept = {}
    for position, group in enumerate(structure.groups):
        if group.name not in wanted:
            kept[group.name] = np.arange(group.size)
            continue
        # A generator for each group, so that a group loses the same channels whichever others are tried with it.
        random = np.random.default_rng([trial, position])
        # Multiples of the golden ratio: neighbours, which are the ones that meet, are far apart.
        place = (position + trial / 2) * 0.618034 % 1
        kept[group.name] = _kept(group, random, trial, place, upper=bool((position + trial) % 2))
    return kept


def _kept(group: Group, random: np.random.Generator, trial: int, place: float, upper: bool) -> np.ndarray:
    members = group.members
    if trial == 0:
        chosen = [_upper(m, random, 0.5 + 0.2 * place) for m in members]
    elif trial == 1:
        chosen = [_ends(m, random, 0.4 + 0.4 * place) for m in members]
    elif trial < 4:
        # The channels of one end, so that those next to any border change sides.
        count = max(round(len(members[0]) * (0.4 + 0.4 * place)), 1)
        chosen = [m[-count:] if upper else m[:count] for m in members]
    elif trial == 4:
        # One channel: numbers in the code become larger than what is left.
        chosen = [random.choice(m, 1) for m in members]
    elif trial in (5, 6) and len(members[0]) > 1:
        # All but one: halves and parities change by the least that there is.
        chosen = [m[1:] if trial == 6 else m[:-1] for m in members]
    else:
        # Another number in every group, and some of them whole: code may take the size of one for that of another.
        most, whole, end = len(members[0]), random.random() < 0.3, random.random() < 0.5
        count = most if whole else int(random.integers(1, most)) if most > 1 else 1
        chosen = [m[-count:] if end else random.choice(m, count, replace=False) for m in members]
    return np.sort(np.concatenate([_enough(m, few, group.least) for m, few in zip(members, chosen, strict=True)]))


def _enough(members: np.ndarray, chosen: np.ndarray, least: int) -> np.ndarray:
    return np.concatenate([chosen, np.setdiff1d(members, chosen)[: max(least - len(chosen), 0)]])


def _upper(members: np.ndarray, random: np.random.Generator, share: float) -> np.ndarray:
    """Remove the first and the last channel and a third to a half of the others, so that any fixed number shows.

    Numbers that adapt (half of the width, a quarter) are right only for selections that are balanced, which a user's
    is not. So most of what stays is in the upper half, and groups lose differently many: code may need two groups to
    keep as many channels without saying so.
    """
    inner = members[1:-1] if members.size > 2 else members[1:]
    count = min(max(int(members.size * share), 1), inner.size)
    return random.choice(inner[-(count + 1) :], count, replace=False)


def _ends(members: np.ndarray, random: np.random.Generator, share: float) -> np.ndarray:
    """Keep the first and the last channel and most of the lower ones: constant bounds may just cut off the ends."""
    if members.size == 2:
        return members[:1]
    inner = members[1:-1]
    count = min(max(int(members.size * share) - 2, 0), max(inner.size - 1, 0))
    some = random.choice(inner[: count + 1], count, replace=False) if count else inner[:0]
    return np.concatenate([members[:1], some, members[-1:]]) if members.size > 1 else members
