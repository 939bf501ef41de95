"""Values of a run that decided about sizes and ways: found boxes, masks, numbers that the code took out of tensors."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class Decisions:
    """Notes what decided in a first run; a slim model is shown it, so that it takes the same way."""

    values: dict[tuple[str, str, int], Any] = field(default_factory=dict)
    _seen: Counter[tuple[str, str]] = field(default_factory=Counter)

    def decide(self, operation: str, module: str, value: Any) -> Any:
        """Note a value that decides, or give back the one that decided in the first run."""
        key = operation, module, self._seen[operation, module]
        self._seen[operation, module] += 1
        return self.values.setdefault(key, value)

    def shown(self) -> Decisions:
        """The same for another run."""
        return Decisions(dict(self.values))
