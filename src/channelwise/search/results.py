"""What a search has found: plain data, the same while it runs and when it is read from its storage later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from channelwise.errors import InvalidArgumentError
from channelwise.io.process import Process

State = Literal["running", "complete", "failed"]
Direction = Literal["maximize", "minimize"]


@dataclass(frozen=True)
class Trial:
    """One candidate of a search.

    ``counts``: kept channels by group. ``score``: what the user's function returned, None unless complete. ``shares``:
    of the targeted costs, kept. ``notes``: what the caller recorded when the candidate was made. ``owner``: the process
    that works on it, if others may, too.
    """

    number: int
    state: State
    counts: Mapping[str, int]
    score: float | None = None
    seconds: float | None = None
    error: str | None = None
    shares: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    owner: Process | None = None


@dataclass(frozen=True)
class Key:
    """What a search is for. Searches that differ in any of this are kept apart: their scores cannot be compared.

    ``model`` is the name of the class, ``digest`` that of the structure, ``targets`` the shares kept; ``options``
    (plain JSON) is all else that scores depend on: excluded groups, channel_divisible, ranking, weights and so on.
    """

    model: str
    digest: str
    targets: Mapping[str, float]
    direction: Direction = "maximize"
    options: Mapping[str, Any] = field(default_factory=dict)

    def merit(self, score: float) -> float:
        """The score, turned so that larger is better."""
        return score if self.direction == "maximize" else -score


@dataclass(frozen=True)
class SearchResults:
    """One search: what it is of, and its candidates by number."""

    key: Key
    trials: Mapping[int, Trial]
    where: str = "memory"

    @property
    def complete(self) -> list[Trial]:
        """The candidates with a score, in order of their numbers."""
        return [t for _, t in sorted(self.trials.items()) if t.state == "complete"]

    @property
    def failed(self) -> list[Trial]:
        """The candidates whose evaluation failed."""
        return [t for _, t in sorted(self.trials.items()) if t.state == "failed"]

    def ranked(self) -> list[Trial]:
        """Complete candidates from the best to the worst; of equal ones the earlier first."""
        return sorted(self.complete, key=lambda t: (-self.key.merit(t.score or 0.0), t.number))

    @property
    def best(self) -> Trial:
        """The candidate with the best score. Raises InvalidArgumentError if none has one."""
        ranked = self.ranked()
        if not ranked:
            raise InvalidArgumentError(f"No candidate of the search in {self.where} has a score yet. Call search().")
        return ranked[0]

    def candidate(self, index: int) -> Trial:
        """The candidate of number ``index``. Raises InvalidArgumentError naming the numbers there are."""
        if not _is_integer(index):
            raise InvalidArgumentError(
                f"index={index!r}: must be a whole number, that of a candidate, such as index=2."
            )
        trial = self.trials.get(int(index))
        if trial is not None and trial.state == "complete":
            return trial
        numbers = [t.number for t in self.complete]
        if not numbers:
            raise InvalidArgumentError(f"No candidate of the search in {self.where} has a score yet. Call search().")
        why = "there is no such candidate" if trial is None else "that candidate failed or has no score yet"
        raise InvalidArgumentError(
            f"index={index!r}: {why}. Those with scores are numbered from {numbers[0]} to "
            f"{numbers[-1]} ({len(numbers)} in all); the best is {self.best.number}."
        )


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
