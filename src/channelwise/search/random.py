"""Random search, for comparison: every kept share is drawn evenly, then all are moved onto the targets."""

from __future__ import annotations

import numpy as np

from channelwise.search.strategy import Request


class RandomSearch:
    """Vectors drawn evenly from the unit cube. Learns nothing."""

    name = "random"
    guided = False

    def __call__(self, request: Request) -> np.ndarray:
        """The next vector (dims,)."""
        return request.rng().random(request.space.dims)
