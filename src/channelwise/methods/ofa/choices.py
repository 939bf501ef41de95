"""One choice of a supernet: the width of a channel group, or the kernel of a large convolution."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from channelwise.errors import InvalidArgumentError
from channelwise.select.widths import channel_step, part_count
from channelwise.structure import Group

Setting = list[dict[str, Any]]
"""One entry per choice, plain JSON: what it is of, its candidates and the active one."""

# In the entry of a setting: where the candidates are, and where the active one is.
_KEYS = {
    "width": ("candidate_out_channel_list", "active_out_channel"),
    "kernel": ("candidate_kernel_size_list", "active_kernel_size"),
}


@dataclass(frozen=True)
class Choice:
    """One decision. ``candidates`` ascend; the last one is what the original network has.

    ``kind`` is "width" (channels of the group ``of``, produced by ``modules``) or "kernel" (side of the square kernel
    of the convolution ``of``). ``fixed`` says why there is only one candidate.
    """

    kind: str
    of: str
    modules: tuple[str, ...]
    candidates: tuple[int, ...]
    fixed: str = ""

    @property
    def name(self) -> str:
        """Unique among the choices of a network."""
        return self.of if self.kind == "width" else f"{self.of} kernel"

    def entry(self, value: int) -> dict[str, Any]:
        """The entry of a setting in which ``value`` is active."""
        candidates, active = _KEYS[self.kind]
        entry: dict[str, Any] = {"group": self.of} if self.kind == "width" else {}
        entry["modules"], entry[candidates], entry[active] = list(self.modules), list(self.candidates), value
        return entry

    def value(self, entry: Any) -> int:
        """The active value of an entry.

        Raises:
            InvalidArgumentError: the entry is of another choice, or its value is not a candidate.
        """
        key = _KEYS[self.kind][1]
        named = entry.get("group", self.of if self.kind == "kernel" else None) if isinstance(entry, Mapping) else None
        if named != self.of or list(entry.get("modules", ())) != list(self.modules) or key not in entry:
            raise InvalidArgumentError(
                f"The setting has no entry for {self.name!r} where it belongs: it is of another network."
            )
        value = entry[key]
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or int(value) not in self.candidates:
            raise InvalidArgumentError(f"{key}={value!r} of {self.name!r} must be one of {list(self.candidates)}.")
        return int(value)

    def listed(self, entry: Mapping[str, Any]) -> Any:
        """The candidates that an entry lists."""
        return entry.get(_KEYS[self.kind][0])


def width_choice(group: Group, ratios: Sequence[float], divisor: int, fixed: str = "") -> Choice:
    """The widths of a group: every ratio of its size, rounded to the divisor; the full size for ratio 1.

    The divisor is halved until the smallest ratio of the group reaches it, so that narrow layers have a choice, too.
    """
    modules = group.layers
    if fixed:
        return Choice("width", group.name, modules, (group.size,), fixed)
    step = channel_step(group, divisor)
    while divisor > 1 and step > max(1, math.floor(min(ratios) * group.size)):
        divisor //= 2
        step = channel_step(group, divisor)
    fewest = math.ceil(group.least * part_count(group) / step)
    found = set()
    for ratio in ratios:
        nearest = step * max(fewest, math.floor(ratio * group.size / step + 0.5))
        found.add(group.size if ratio == 1 else min(nearest, group.size))
    why = "" if len(found) > 1 else f"its {group.size} channels leave no choice"
    return Choice("width", group.name, modules, tuple(sorted(found)), why)
