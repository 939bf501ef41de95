"""Candidates of a search: from counts to the very channels, by one ranking for all of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch

from channelwise.api import ChannelGraph
from channelwise.errors import InvalidArgumentError, NothingToPruneError, UnreachableTargetError
from channelwise.evaluate.candidate import pack
from channelwise.evaluate.repair import Calibration
from channelwise.methods.arguments import check_ratio
from channelwise.ranking import Criterion, Reconstruction, Weights, bind, comparable, scores
from channelwise.search import TargetSpace
from channelwise.select.channels import choose, dead_channels
from channelwise.select.widths import Widths, allowed_widths
from channelwise.selection import Selection
from channelwise.structure import Group

RANKING = "consumer_l2"
"""The ranking by default, where weights are not re-fitted."""


def shares_kept(removal_ratio: object, params_ratio: object) -> dict[str, float]:
    """The targets of a search from the fractions of MACs and of parameters to remove, of which one may be None."""
    removed = {"macs": ("removal_ratio", removal_ratio), "params": ("params_ratio", params_ratio)}
    given = {cost: pair for cost, pair in removed.items() if pair[1] is not None}
    if not given:
        raise InvalidArgumentError(
            "Give removal_ratio (the fraction of MACs to remove), params_ratio (of parameters), or both."
        )
    return {cost: round(1 - check_ratio(name, ratio), 12) for cost, (name, ratio) in given.items()}


def ranking_name(ranking: str | Criterion | None, *, refit: bool) -> str:
    """What a search records of its ranking; None for the default."""
    if ranking is None:
        return Reconstruction.__name__.lower() if refit else RANKING
    return ranking if isinstance(ranking, str) else getattr(ranking, "__name__", type(ranking).__name__)


class Candidates:
    """A model's candidates with some groups excluded and widths that are multiples of ``channel_divisible``.

    The ranking is bound at first use: gradients or activations take a pass over images, a finished search needs none.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        excluded: Collection[str],
        channel_divisible: int,
        ranking: str | Criterion | None,
        calibration: Calibration,
    ) -> None:
        self._graph = graph
        self._ranking, self._calibration = ranking, calibration
        self._criterion: _Remembered | None = None
        self.weights = Weights.of(graph.tensors(), graph.structure)
        self.dead = dead_channels(graph.structure, self.weights)
        self.widths: Widths = allowed_widths(
            graph.structure, channel_divisible=channel_divisible, full=excluded, dead=self.dead
        )

    @property
    def criterion(self) -> Criterion:
        """The ranking, bound to the model; every group is ranked once."""
        if self._criterion is None:
            ranking = self._ranking
            if ranking is None:
                refit = self._calibration.refit
                ranking = Reconstruction(grams=self._calibration.gather(self._graph)) if refit else RANKING
            self._criterion = _Remembered(bind(ranking, self._graph.model, self._graph.structure))
        return self._criterion

    def selection(self, counts: Mapping[str, int]) -> Selection:
        """The best channels for these counts."""
        return choose(self._graph.structure, self.weights, counts, self.criterion, dead=self.dead)

    def describe(self, counts: Mapping[str, int]) -> dict[str, Any]:
        """What is stored of a candidate besides its counts."""
        return {"kept": pack(self.selection(counts), self._graph.structure)}

    def space(self, targets: Mapping[str, float]) -> TargetSpace:
        """The counts that meet ``targets``, shares kept by cost.

        Raises:
            NothingToPruneError: no group has a choice.
            UnreachableTargetError: with the reachable range.
        """
        structure = self._graph.structure
        if not structure.groups:
            raise NothingToPruneError("No channel group is left to prune: all channels are frozen, see graph.frozen.")
        try:
            return TargetSpace(structure, self.widths, targets)
        except UnreachableTargetError as error:
            names = {"macs": "removal_ratio", "params": "params_ratio"}
            asked = " and ".join(f"{names[cost]}={1 - share:g}" for cost, share in targets.items())
            raise UnreachableTargetError(f"{asked} cannot be reached. {error}") from error


class _Remembered:
    """A criterion that ranks every group once."""

    def __init__(self, criterion: Criterion) -> None:
        self.__name__ = getattr(criterion, "__name__", type(criterion).__name__)
        self.comparable = comparable(criterion)
        self._criterion = criterion
        self._known: dict[str, np.ndarray] = {}

    def __call__(self, group: Group, tensors: Mapping[str, torch.Tensor]) -> np.ndarray:
        if group.name not in self._known:
            self._known[group.name] = scores(self._criterion, group, tensors)
        return self._known[group.name]
