"""CMA-ES (Hansen, "The CMA Evolution Strategy: A Tutorial", 2016) in the log-odds of the kept shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from channelwise.inputs.check import check_flag
from channelwise.search.odds import from_odds, to_odds
from channelwise.search.strategy import FARTHEST, MOST, Known, Request
from channelwise.select.widths import check_count, check_number


@dataclass(frozen=True)
class CmaEs:
    """Samples a normal distribution that is fitted to the better candidates, generation by generation.

    The state is computed anew from the finished candidates, so that nothing but these has to be stored; a candidate
    that is late counts in the generation in which it ends.

    Arguments:
        sigma: standard deviation at the start, in log-odds; the start is the best prior, or equal shares.
        population: candidates of a generation, at least 4; 0: 4 + 3 log(dims).
        separable: learn a variance for every group, but no correlations (better in few evaluations).

    Raises:
        InvalidArgumentError: naming an argument that is no number in its range.
    """

    sigma: float = 0.5
    population: int = 0
    separable: bool = True

    name = "cmaes"
    guided = True

    def __post_init__(self) -> None:
        check_number("sigma", self.sigma, 0, FARTHEST, above=True)
        if self.population != 0:
            check_count("population", self.population, least=4, most=MOST)
        check_flag("separable", self.separable)

    def __call__(self, request: Request) -> np.ndarray:
        """The next vector (dims,)."""
        dims = request.space.dims
        if dims < 2:
            return request.rng().random(dims)
        optimiser = self._replayed(request)
        # The library draws from one stream of random numbers; this one belongs to the request.
        optimiser.reseed_rng(int(request.rng().integers(2**31)))
        return from_odds(optimiser.ask())

    def _replayed(self, request: Request) -> Any:
        from cmaes import CMA, SepCMA

        size = self.population or 4 + int(3 * np.log(request.space.dims))
        priors = {vector.tobytes() for vector in request.priors}
        kind = SepCMA if self.separable else CMA
        optimiser = kind(mean=self._start(request, priors), sigma=self.sigma, population_size=size, seed=request.seed)
        sampled = [known for known in request.finished if known.vector.tobytes() not in priors]
        for first in range(0, len(sampled) - size + 1, size):
            generation = sampled[first : first + size]
            optimiser.tell([(to_odds(known.vector), -_merit(known)) for known in generation])
        return optimiser

    def _start(self, request: Request, priors: set[bytes]) -> np.ndarray:
        scored = [known for known in request.finished if known.vector.tobytes() in priors]
        if scored:
            return to_odds(max(scored, key=_merit).vector)
        return to_odds(request.space.encode(request.space.project(np.full(request.space.dims, 0.5))))


def _merit(known: Known) -> float:
    assert known.merit is not None
    return known.merit
