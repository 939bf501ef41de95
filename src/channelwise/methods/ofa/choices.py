"""One choice of a supernet: the width of a channel group, or the kernel of a large convolution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from channelwise.errors import InvalidArgumentError

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
