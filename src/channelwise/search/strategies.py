"""The strategies there are, by name; and what else may be given as one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from optuna.samplers import BaseSampler

from channelwise.errors import InvalidArgumentError
from channelwise.search.cmaes import CmaEs
from channelwise.search.evolution import Evolution
from channelwise.search.random import RandomSearch
from channelwise.search.sampler import OptunaStrategy, Tpe
from channelwise.search.strategy import Strategy

_registry: dict[str, Callable[[], Strategy]] = {
    "cmaes": CmaEs, "evolution": Evolution, "random": RandomSearch, "tpe": Tpe,
}  # fmt: skip
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
        if isinstance(strategy, BaseSampler):
            return OptunaStrategy(lambda seed: strategy, name=type(strategy).__name__)
    raise InvalidArgumentError(
        f"strategy must be one of {', '.join(names())}, an object like them, or an Optuna sampler; not {strategy!r}."
    )
