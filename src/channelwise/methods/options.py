"""What users ask of a method, in small frozen objects: the target, the channels that may go, how a search is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from channelwise.errors import InvalidArgumentError
from channelwise.inputs.check import check_flag
from channelwise.ranking import Criterion, get
from channelwise.select.budget import check_share, kept_shares
from channelwise.select.widths import check_count

DIVISOR = 2
"""What widths are multiples of by default."""


@dataclass(frozen=True)
class Target:
    """How much of a network to keep.

    Args:
        macs: Share of the full network's MACs, in (0, 1].
        params: Share of its parameters, in (0, 1]. A search meets both if both are given.

    Raises:
        InvalidArgumentError: neither is given, or one is no such share.
    """

    macs: float | None = None
    params: float | None = None

    def __post_init__(self) -> None:
        for cost, share in (("macs", self.macs), ("params", self.params)):
            if share is not None:
                check_share(cost, share)
        if not self.shares:
            raise InvalidArgumentError("Give a target: Target(macs=0.5), Target(params=0.5) (shares kept), or both.")

    @property
    def shares(self) -> dict[str, float]:
        """The shares to keep, by cost."""
        given = {"macs": self.macs, "params": self.params}
        return {cost: round(float(share), 12) for cost, share in given.items() if share is not None}

    def __str__(self) -> str:
        return self.words(self.shares)

    @staticmethod
    def words(shares: Mapping[str, float]) -> str:
        """Shares kept, by cost, as users of this kind of target call them."""
        return kept_shares(shares)


@dataclass(frozen=True, eq=False)
class Channels:
    """Which channels may go, and which of them go first.

    Args:
        excludes: Groups to leave alone: modules, names, patterns or module types.
        with_group_conv: Prune channels that pass through grouped convolutions too (depthwise ones always are).
        channel_divisible: Widths of pruned layers are multiples of this.
        ranking: A criterion's name or a callable, see `channelwise.ranking`. None: "l1" in the iterative method; in a
            search `Reconstruction` where weights are re-fitted and "consumer_l2" elsewhere.

    Raises:
        InvalidArgumentError: there is no such ranking, or ``channel_divisible`` is no whole number from 1.
    """

    excludes: Any = ()
    with_group_conv: bool = False
    channel_divisible: int = DIVISOR
    ranking: str | Criterion | None = None

    def __post_init__(self) -> None:
        check_flag("with_group_conv", self.with_group_conv)
        check_count("channel_divisible", self.channel_divisible)
        if self.ranking is not None:
            get(self.ranking)


@dataclass(frozen=True)
class SearchOptions:
    """How a search is done.

    Args:
        candidates: How many candidates the search has, those of earlier runs and failed ones included.
        strategy: How candidates are chosen: "evolution", "cmaes", "tpe", "random", an object like these (see
            `channelwise.search`), or an Optuna sampler.
        direction: "maximize" for scores like accuracy, "minimize" for losses.
        seed: With one worker, the same seed gives the same candidates.

    Raises:
        InvalidArgumentError: ``candidates`` is no whole number from 1. `OneStep.search` checks the others.
    """

    candidates: int = 200
    strategy: Any = "evolution"
    direction: Literal["maximize", "minimize"] = "maximize"
    seed: int = 0

    def __post_init__(self) -> None:
        check_count("candidates", self.candidates)
