"""Which numbers of channels each group may keep: divisors, equal parts, minimum widths, limits, dead channels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, TypeGuard

import numpy as np

from channelwise.errors import InvalidArgumentError
from channelwise.structure import Group, Structure, unknown_group

# Larger than the rounding error of a product such as 0.9 * 10.
EPSILON = 1e-9


@dataclass(frozen=True)
class Widths:
    """The allowed kept counts of all groups, as vectors in the order of ``structure.groups``.

    A group may keep ``low``, ``low + step``, … up to ``grid``, and ``high``. ``high`` differs from ``grid`` when the
    group's full size is no multiple of its step: the full size is always allowed.
    """

    size: np.ndarray
    step: np.ndarray
    low: np.ndarray
    grid: np.ndarray
    high: np.ndarray

    def nearest(self, wanted: np.ndarray) -> np.ndarray:
        """The allowed counts nearest to ``wanted`` (groups,), the larger of two equally near."""
        rounded = np.floor(wanted / self.step + 0.5 + EPSILON).astype(int) * self.step
        counts = np.clip(rounded, self.low, self.grid)
        return np.where((self.high > self.grid) & (2 * wanted + EPSILON >= self.grid + self.high), self.high, counts)

    def above(self, counts: np.ndarray) -> np.ndarray:
        """The next larger allowed counts; the same counts where no larger ones are allowed."""
        return np.where(counts + self.step <= self.grid, counts + self.step, self.high)

    def below(self, counts: np.ndarray) -> np.ndarray:
        """The next smaller allowed counts; the same counts where no smaller ones are allowed."""
        return np.where(counts > self.grid, self.grid, np.maximum(counts - self.step, self.low))

    @property
    def free(self) -> np.ndarray:
        """Which groups have a choice."""
        return self.low < self.high

    def pin(self, groups: np.ndarray) -> Widths:
        """The same with the groups of a mask held at the most they may keep."""
        return replace(self, low=np.where(groups, self.high, self.low), grid=np.where(groups, self.high, self.grid))


def allowed_widths(
    structure: Structure,
    *,
    channel_divisible: int = 1,
    min_channels: int = 1,
    full: Collection[str] = (),
    limits: float | Mapping[str, float] | None = None,
    dead: Mapping[str, np.ndarray] | None = None,
) -> Widths:
    """The counts each group may keep.

    Arguments:
        channel_divisible: the group's kept slots along every output axis are a multiple of this. Slots of other groups
            and frozen slots on the same axis are not counted. A group narrower than that stays full.
        min_channels: no group keeps fewer channels; a narrower group stays full.
        full: names of groups that must stay as they are.
        limits: the largest sparsity of a group, by name or for all.
        dead: masks of channels that an earlier pruning removed, from ``dead_channels``; they cap the counts.
    """
    check_count("channel_divisible", channel_divisible)
    check_count("min_channels", min_channels)
    limit = np.ones(len(structure.groups)) if limits is None else sparsities(structure, limits, "limits", 1.0, True)
    rows = [
        _widths_of(
            group, int(channel_divisible), int(min_channels), 0.0 if group.name in full else float(largest),
            None if dead is None else dead.get(group.name),
        )
        for group, largest in zip(structure.groups, limit, strict=True)
    ]  # fmt: skip
    return Widths(*np.asarray(rows, int).reshape(-1, 5).T)


def _widths_of(
    group: Group, divisor: int, minimum: int, limit: float, dead: np.ndarray | None
) -> tuple[int, int, int, int, int]:
    size = group.size
    # A larger step leaves the same choice: none.
    step = min(size, channel_step(group, divisor))
    fixed = (size, step, size, size, size)
    floor = step * math.ceil(max(minimum, group.least * part_count(group)) / step)
    low = step * math.ceil(max(floor, (1 - limit) * size - EPSILON) / step)
    if limit == 0 or floor > size:
        return fixed
    alive = size if dead is None else alive_count(group, dead)
    if alive == size:
        return fixed if low > size else (size, step, low, size // step * step, size)
    high = max(alive // step * step, floor)
    return size, step, min(low, high), high, high


def channel_step(group: Group, divisor: int = 1) -> int:
    """The smallest n whose n channels are a multiple of ``divisor`` slots on every output axis, equal in all parts."""
    width: Counter[tuple[str, int]] = Counter()
    for slots in group.slots:
        if slots.role == "output":
            width[slots.tensor, slots.axis] += slots.index.shape[1]
    steps = {divisor // math.gcd(divisor, multiplicity) for multiplicity in width.values()} or {divisor}
    return math.lcm(*steps, part_count(group))


def part_count(group: Group) -> int:
    """How many parts keep equally many channels."""
    return 1 if group.parts is None else len(group.members)


def alive_count(group: Group, dead: np.ndarray) -> int:
    """How many channels can stay, equally many in every part, when the dead ones go."""
    alive = ~np.asarray(dead, bool)
    per_part = [int(alive[part].sum()) for part in group.members]
    return min(per_part) * len(per_part)


def sparsities(
    structure: Structure, values: Any, name: str = "sparsity", missing: float = 0.0, closed: bool = False
) -> np.ndarray:
    """One number for all groups, or numbers by group, as a checked vector in the order of ``structure.groups``.

    Values lie in [0, 1), or in [0, 1] with ``closed``. Groups that a mapping leaves out get ``missing``.
    """
    if not isinstance(values, Mapping):
        return np.full(len(structure.groups), _fraction(values, name, closed))
    position = {g.name: i for i, g in enumerate(structure.groups)}
    vector = np.full(len(position), missing, float)
    for group, value in values.items():
        if group not in position:
            raise InvalidArgumentError(unknown_group(structure, group, name))
        vector[position[group]] = _fraction(value, f"{name}[{group!r}]", closed)
    return vector


def is_number(value: object) -> TypeGuard[float]:
    """Whether ``value`` is a real number, not a bool, that a float can hold."""
    if not isinstance(value, Real) or isinstance(value, (bool, np.bool_)):
        return False
    try:
        float(value)
    except OverflowError:
        return False
    return True


def check_count(name: str, value: Any, least: int = 1, most: int | None = None) -> None:
    """Raise InvalidArgumentError unless ``value`` is an integer of at least ``least``, and at most ``most``."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        size = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise InvalidArgumentError(f"{name} must be an integer {size}, not {value!r}.")


def check_number(name: str, value: Any, least: float, most: float, *, above: bool = False) -> None:
    """Raise InvalidArgumentError unless ``value`` is a number from ``least``, or ``above`` it, to ``most``."""
    if not is_number(value) or not least <= value <= most or (above and value == least):
        start = "(" if above else "["
        raise InvalidArgumentError(f"{name} must be a number in {start}{least:g}, {most:g}], not {value!r}.")


def _fraction(value: Any, name: str, closed: bool) -> float:
    if is_number(value) and (0 <= value < 1 or (closed and value == 1)):
        return float(value)
    interval = "[0, 1]" if closed else "[0, 1)"
    raise InvalidArgumentError(f"{name} must be a number in {interval}, the share removed, not {value!r}.")
