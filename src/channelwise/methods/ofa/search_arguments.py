"""What a search among subnets is given: the metric, how many subnets, and the window of MACs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from channelwise.errors import InvalidArgumentError
from channelwise.methods.ofa.evolution import FrontEvolution
from channelwise.select.widths import check_count, is_number

_TAKEN = ("net_id", "mode", "flops", "macs", "params", "subnet_setting")
_DIRECTIONS = {"max": "maximize", "min": "minimize", "maximize": "maximize", "minimize": "minimize"}


@dataclass(frozen=True)
class Metric:
    """What the score is called in results, and whether larger is better ("max") or smaller ("min")."""

    name: str
    best: str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name or self.name in _TAKEN:
            raise InvalidArgumentError(
                f"evaluation_metric={self.name!r}: must be the name of what eval_fn returns, such as 'acc1', and "
                f"none of {', '.join(sorted(_TAKEN))}."
            )
        if not isinstance(self.best, str) or self.best not in _DIRECTIONS:
            raise InvalidArgumentError(f"min_or_max_metric={self.best!r}: must be 'max' (larger is better) or 'min'.")

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        """The same as a study calls it."""
        return _DIRECTIONS[self.best]  # type: ignore[return-value]


@dataclass(frozen=True)
class Effort:
    """How much is searched: the sizes of `FrontEvolution`'s populations and the number of generations."""

    population: int
    generations: int
    mutations: int
    mutate_prob: float
    crossovers: int

    def __post_init__(self) -> None:
        check_count("parent_popu_size", self.population)
        for name, value in (
            ("iteration", self.generations), ("mutate_size", self.mutations), ("crossover_size", self.crossovers),
        ):  # fmt: skip
            if not is_number(value) or not math.isfinite(value) or value != int(value) or value < 0:
                raise InvalidArgumentError(f"{name}={value!r}: must be a whole number of at least 0.")
        if not is_number(self.mutate_prob) or not 0 <= self.mutate_prob <= 1:
            raise InvalidArgumentError(f"mutate_prob={self.mutate_prob!r}: must be a probability, in [0, 1].")

    def evolution(self, step: float) -> FrontEvolution:
        """The evolution over buckets of ``step`` million MACs."""
        return FrontEvolution(
            int(self.population), int(self.mutations), float(self.mutate_prob), int(self.crossovers), float(step)
        )

    @property
    def evaluations(self) -> int:
        """How many subnets are evaluated in total."""
        return int(self.population + self.generations * (self.mutations + self.crossovers))


@dataclass(frozen=True)
class Window:
    """The least and the most MACs, and the width of a bucket of which the best subnet is looked for; in millions.

    ``unit`` is what the user calls them: "flops" or "macs".
    """

    low: float
    high: float
    step: float
    unit: str = "flops"

    def __post_init__(self) -> None:
        least, most, step = f"min_{self.unit}", f"max_{self.unit}", f"{self.unit}_step"
        for name, value in ((least, self.low), (most, self.high), (step, self.step)):
            if not is_number(value) or not 0 < value < math.inf:
                raise InvalidArgumentError(
                    f"{name}={value!r}: must be a positive, finite number, MACs in millions; left out, it is no limit."
                )
        if self.step < 1e-6:
            raise InvalidArgumentError(f"{step}={self.step!r}: is less than one MAC, which is 1e-06 million.")
        if self.low > self.high:
            raise InvalidArgumentError(f"{least}={self.low:g} is above {most}={self.high:g} (MACs in millions).")


def either(name: str, value: Any, other: str, another: Any, default: float) -> Any:
    """The value of an argument that has two names."""
    if value is not None and another is not None:
        raise InvalidArgumentError(f"{name} and {other} are two names of one argument: give one of them.")
    return next((given for given in (value, another) if given is not None), default)
