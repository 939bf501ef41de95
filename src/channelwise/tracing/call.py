"""What the torch function that the user's code calls was given: the function watch tells it, rules read it."""

from __future__ import annotations

from typing import NamedTuple

from channelwise.tracing.provenance import Traced


class Call(NamedTuple):
    """The running torch function."""

    adapts: bool = False
    """It computes every size from its input, as ``flatten`` and ``chunk`` do."""
    numbers: tuple[Traced, ...] = ()
    """The numbers among its arguments that remember where they come from."""
    sizes: tuple[int, ...] = ()
    """The shape that it was asked for."""
    free_axis: int | None = None
    """The axis of that shape whose length is given as -1, and so adapts."""
    head_width: int = 0
    """In torch's own attention, the width of a head."""
    repeats: int = 0
    """There, what is expanded to as many is equal for all heads."""

    def number(self, axis: int) -> Traced | None:
        """The length of an axis of the shape that was asked for, if it remembers where it comes from."""
        found = self.sizes[axis] if axis < len(self.sizes) else None
        return found if isinstance(found, Traced) else None
