"""Optuna's samplers as strategies: TPE by name, any other as an object."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, TPESampler
from optuna.trial import TrialState

from channelwise.errors import InvalidArgumentError
from channelwise.search.strategy import Request


class OptunaStrategy:
    """Lets an Optuna sampler choose, from a study in memory that holds the candidates known so far.

    Arguments:
        sampler: makes the sampler from a seed. Samplers that look at nothing but the trials choose the same when an
            interrupted search goes on.
    """

    guided = True

    def __init__(self, sampler: Callable[[int], BaseSampler], name: str = "optuna") -> None:
        if not callable(sampler) or isinstance(sampler, BaseSampler):
            raise InvalidArgumentError(
                f"sampler must be a function that makes a sampler from a seed, such as optuna.samplers.TPESampler, not "
                f"{sampler!r}."
            )
        self.name = name
        self._sampler = sampler

    def __call__(self, request: Request) -> np.ndarray:
        """The next vector (dims,)."""
        with quiet_optuna():
            return self._ask(request)

    def _ask(self, request: Request) -> np.ndarray:
        seed = int(request.rng().integers(2**31))
        sampler = self._sampler(seed)
        if isinstance(sampler, CmaEsSampler):
            raise InvalidArgumentError("Optuna's CmaEsSampler keeps its state in pickles; use strategy='cmaes'.")
        study = optuna.create_study(direction="maximize", sampler=sampler)
        distributions: dict[str, BaseDistribution] = {name: FloatDistribution(0.0, 1.0) for name in request.space.free}
        for known in sorted([*request.finished, *request.running], key=lambda k: k.number):
            study.add_trial(
                optuna.trial.create_trial(
                    state=TrialState.RUNNING if known.merit is None else TrialState.COMPLETE,
                    value=known.merit,
                    params=dict(zip(distributions, map(float, known.vector), strict=True)),
                    distributions=distributions,
                )
            )
        trial = study.ask(distributions)
        return np.array([trial.params[name] for name in distributions], float)


class Tpe(OptunaStrategy):
    """The tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011), groups taken together."""

    def __init__(self) -> None:
        super().__init__(lambda seed: TPESampler(seed=seed, multivariate=True, constant_liar=True), "tpe")


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Optuna's own messages and its warnings about experimental features are not for the user of a search."""
    level = optuna.logging.get_verbosity()
    # Every change makes Python's logging forget what it has looked up: a millisecond if done for each call.
    loud = level < optuna.logging.ERROR
    if loud:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        if loud:
            optuna.logging.set_verbosity(level)
