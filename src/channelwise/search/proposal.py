"""A candidate that is not known yet: a prior, what the strategy answers, or any other where it repeats itself."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from channelwise.errors import InvalidArgumentError
from channelwise.search.strategy import Request, Strategy

ATTEMPTS = 32
"""How often a strategy may answer with a candidate that is known already."""


def new_counts(
    strategy: Strategy,
    request: Request,
    priors: Sequence[np.ndarray],
    known: Collection[tuple[int, ...]],
) -> np.ndarray | None:
    """Counts (groups,) of a new candidate; None if there is none.

    Arguments:
        request: what the strategy is asked first.
        priors: counts that guided strategies begin with.
        known: the counts of all candidates there are.
    """
    if strategy.guided:
        for prior in priors:
            if tuple(prior.tolist()) not in known:
                return prior
    for attempt in range(ATTEMPTS):
        counts = _proposed(strategy, replace(request, attempt=attempt))
        if tuple(counts.tolist()) not in known:
            return counts
    last = replace(request, attempt=ATTEMPTS)
    rng, space = last.rng(), last.space
    listed = space.listed()
    if listed is not None:
        left = [counts for counts in listed if tuple(counts.tolist()) not in known]
        return left[rng.integers(len(left))] if left else None
    for _ in range(ATTEMPTS):
        counts = space.project(rng.random(space.dims))
        if tuple(counts.tolist()) not in known:
            return counts
    return None


def _proposed(strategy: Strategy, request: Request) -> np.ndarray:
    space = request.space
    vector = np.asarray(strategy(request), float)
    if vector.shape != (space.dims,) or not np.isfinite(vector).all():
        raise InvalidArgumentError(
            f"The strategy {strategy.name!r} must return {space.dims} finite numbers, not {vector!r}."
        )
    return space.project(vector)
