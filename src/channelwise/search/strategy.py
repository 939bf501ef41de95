"""How a search chooses the next candidate: what a strategy is asked, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from channelwise.search.odds import to_odds
from channelwise.search.space import Space

MOST = 10_000
"""The largest population, or number of parents or children, of a strategy."""
FARTHEST = 100.0
"""The largest deviation: log-odds of that size are the ends of every range."""


@dataclass(frozen=True, eq=False)
class Known:
    """A candidate of the search so far. ``merit``: its score, larger is better; None while it runs or if it failed.

    Equal to itself only, so that sets of thousands are fast.
    """

    number: int
    vector: np.ndarray
    merit: float | None = None


@dataclass(frozen=True)
class Request:
    """All that a strategy may look at. The same request gets the same answer, so an interrupted search goes on alike.

    ``finished`` are the scored candidates in order of their numbers, ``running`` those without a score yet.
    ``priors`` (n, dims) are vectors thought to be good. ``number`` is the candidate's; ``attempt`` counts from 0 how
    often the strategy's answer was a candidate already known. ``budget`` is how many candidates the search will have.
    """

    space: Space
    finished: tuple[Known, ...]
    running: tuple[Known, ...]
    priors: np.ndarray
    number: int
    seed: int
    attempt: int = 0
    budget: int = 200

    def rng(self) -> np.random.Generator:
        """Random numbers that belong to this request."""
        return np.random.default_rng([self.seed, self.number, self.attempt])

    def merits(self) -> np.ndarray:
        """(finished,) merits in the order of ``finished``."""
        return np.array([known.merit for known in self.finished], float)

    def odds(self) -> np.ndarray:
        """(finished, dims) log-odds of the vectors of the finished candidates."""
        vectors = [known.vector for known in self.finished]
        return to_odds(np.stack(vectors)) if vectors else np.empty((0, self.space.dims))


@runtime_checkable
class Strategy(Protocol):
    """Chooses the next candidate.

    ``guided``: learns from scores; the priors are then evaluated first.
    """

    name: str
    guided: bool

    def __call__(self, request: Request) -> np.ndarray:
        """The next vector (dims,) in [0, 1]; it need not meet the targets."""
