"""Log-odds of the kept shares, in which strategies take their steps."""

from __future__ import annotations

import numpy as np

# Where log-odds of widths at an end of their range are cut off.
EDGE = 0.01


def to_odds(vectors: np.ndarray) -> np.ndarray:
    """Log-odds of vectors of any shape in [0, 1], where steps are as large near the ends as in the middle."""
    inside = np.clip(vectors, EDGE, 1 - EDGE)
    return np.log(inside / (1 - inside))


def from_odds(odds: np.ndarray) -> np.ndarray:
    """Vectors in [0, 1] from log-odds."""
    return 1 / (1 + np.exp(-np.clip(odds, -30, 30)))
