"""Values of a run that decided about sizes and ways: found boxes, masks, numbers that the code took out of tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

Shapes = tuple[tuple[int, ...], ...]


@dataclass(eq=False)
class Decisions:
    """Notes what decided in a first run; a slim model is shown it, so that it takes the same way.

    ``values``: by operator, module and how often it decided there before, the shapes of what it was given, and what
    came out.
    """

    values: dict[tuple[str, str, int], tuple[Shapes, Any]] = field(default_factory=dict)
    _seen: Counter[tuple[str, str]] = field(default_factory=Counter)

    def decide(self, operation: str, module: str, given: Iterable[torch.Tensor], value: Any) -> Any:
        """Note a value that decides, or give back the one that decided in the first run.

        Given tensors of other shapes, of which channels were removed, it is the value of this run that decides.
        """
        key = operation, module, self._seen[operation, module]
        self._seen[operation, module] += 1
        shapes = tuple(tuple(t.shape) for t in given if not t.is_nested)
        before, decided = self.values.setdefault(key, (shapes, value))
        return decided if before == shapes else value

    def shown(self) -> Decisions:
        """The same for another run."""
        return Decisions(dict(self.values))
