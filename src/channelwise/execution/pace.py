"""How long evaluations take, and which one takes suspiciously long."""

from __future__ import annotations

from bisect import insort

SLOW = 10
"""An evaluation that takes so many times the median is said."""
FEW = 5
"""Fewer evaluations have no median that means anything."""
LEAST_SECONDS = 10.0
"""Quicker evaluations are never said to be slow."""

START_SECONDS = 60.0
"""A worker that is not ready after so long is said, and ended where the timeout is not longer."""


class Pace:
    """The seconds that the evaluations so far have taken."""

    def __init__(self) -> None:
        self._seconds: list[float] = []

    def add(self, seconds: float) -> None:
        """Take note of an evaluation that has ended."""
        insort(self._seconds, seconds)

    @property
    def median(self) -> float:
        return self._seconds[len(self._seconds) // 2]

    @property
    def limit(self) -> float | None:
        """From how many seconds on an evaluation is slow; None as long as nobody knows."""
        return max(LEAST_SECONDS, SLOW * self.median) if len(self._seconds) >= FEW else None

    def slow(self, label: str, seconds: float, where: str) -> str:
        """What is said of an evaluation that is slow."""
        return (
            f"Evaluating {label} has taken {seconds:.0f} s so far {where}; the median is {self.median:.3g} s. Does "
            "eval_fn hang, or is the process stopped?"
        )


def not_ready(seconds: float, who: str) -> str:
    """What is said of a worker that does not become ready."""
    return (
        f"{who[0].upper()}{who[1:]} has not been ready for {seconds:.0f} s. Does importing the program, or what makes "
        "the model, hang?"
    )
