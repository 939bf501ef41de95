"""How a search chooses the next candidate: the interface of strategies and their registry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from channelwise.errors import InvalidArgumentError
from channelwise.search.space import Space


@dataclass(frozen=True)
class Known:
    """A candidate of the search so far. ``merit``: its score, larger is better; None while it runs or if it failed."""

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


# Where log-odds of widths at an end of their range are cut off.
EDGE = 0.01


def to_odds(vectors: np.ndarray) -> np.ndarray:
    """Log-odds of vectors of any shape in [0, 1], where steps are as large near the ends as in the middle."""
    inside = np.clip(vectors, EDGE, 1 - EDGE)
    return np.log(inside / (1 - inside))


def from_odds(odds: np.ndarray) -> np.ndarray:
    """Vectors in [0, 1] from log-odds."""
    return 1 / (1 + np.exp(-np.clip(odds, -30, 30)))


_registry: dict[str, Callable[[], Strategy]] = {}
Factory = TypeVar("Factory", bound=Callable[[], Strategy])


def register(name: str) -> Callable[[Factory], Factory]:
    """Make a strategy, a class without required arguments, known by ``name``."""

    def add(factory: Factory) -> Factory:
        _registry[name] = factory
        return factory

    return add


def names() -> tuple[str, ...]:
    """The registered strategies."""
    return tuple(sorted(_registry))


def get(strategy: Any) -> Strategy:
    """A strategy from its name, from an object that is one, or from an Optuna sampler.

    Raises InvalidArgumentError naming the registered ones.
    """
    if isinstance(strategy, str) and strategy in _registry:
        return _registry[strategy]()
    if not isinstance(strategy, (str, type)):
        if callable(strategy) and isinstance(strategy, Strategy):
            return strategy
        from channelwise.search.sampler import OptunaStrategy, is_sampler

        if is_sampler(strategy):
            return OptunaStrategy(lambda seed: strategy, name=type(strategy).__name__)
    raise InvalidArgumentError(
        f"strategy must be one of {', '.join(names())}, an object like them, or an Optuna sampler; not {strategy!r}."
    )
