"""From what `prune` is asked for (a removal ratio, a threshold, a spec file) to the channels that stay."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import torch

from channelwise.errors import NothingToPruneError, UnreachableTargetError
from channelwise.methods.loss_curves import loss_curves, severity_profile
from channelwise.methods.sensitivity import Sensitivity
from channelwise.methods.spec_file import Spec
from channelwise.ranking import Criterion
from channelwise.ranking.weights import Weights
from channelwise.select.budget import TOLERANCE, counts_for_sparsity, reachable, solve_budget
from channelwise.select.channels import choose, dead_channels
from channelwise.select.widths import Widths, allowed_widths
from channelwise.selection import Selection
from channelwise.structure import Structure

log = logging.getLogger(__name__)

MAX_SPARSITY = 0.9
"""No group loses more: nothing is known beyond what `ana` measures."""


class Targets:
    """What is common to all targets: the network, its weights, the groups that stay full, the widths allowed."""

    def __init__(
        self,
        structure: Structure,
        tensors: Mapping[str, torch.Tensor],
        full: set[str],
        channel_divisible: int,
        ranking: str | Criterion,
        why_full: str = "",
    ) -> None:
        self._structure = structure
        self._why_full = why_full
        self._weights = Weights.of(tensors, structure)
        self._full = full
        self._ranking = ranking
        self._dead = dead_channels(structure, self._weights)
        self._divisor = channel_divisible
        self._widths = self._allowed(MAX_SPARSITY)

    def removal_ratio(self, ratio: float, sensitivity: Sensitivity) -> Selection:
        """Remove the fraction ``ratio`` of the full model's MACs, all groups losing equally much score.

        Raises:
            UnreachableTargetError: with the range of ratios that can be reached.
            NothingToPruneError: every group is excluded.
        """
        if not self._widths.free.any():
            raise NothingToPruneError(
                f"No channel group is left to prune: all are excluded or at their smallest width.{self._why_full}"
            )
        low, high = reachable(self._structure, "macs", widths=self._widths)
        keep = 1 - ratio
        if not low * (1 - TOLERANCE) <= keep <= high * (1 + TOLERANCE):
            raise UnreachableTargetError(
                f"removal_ratio={ratio:g} cannot be reached: with these excludes and channel_divisible="
                f"{self._divisor} between {1 - high:.3f} and {1 - low:.3f} of the MACs of the original model can be "
                f"removed (at most {MAX_SPARSITY:.0%} of a group's channels)."
                + (f" An earlier pruning has removed {1 - high:.3f} already." if ratio < 1 - high else "")
                + self._why_full
            )
        profile = severity_profile(loss_curves(self._structure, sensitivity))
        counts = solve_budget(self._structure, keep, "macs", profile=profile, widths=self._widths)
        return self._choose(counts)

    def threshold(self, threshold: float, sensitivity: Sensitivity) -> Selection:
        """Take every group as far as it loses at most the share ``threshold`` of the score when pruned alone."""
        curves = loss_curves(self._structure, sensitivity)
        limit = np.array(
            [curves[g.name].largest_sparsity(threshold) if g.name in curves else 0.0 for g in self._structure.groups]
        )
        wanted = self._widths.size * (1 - np.minimum(limit, MAX_SPARSITY))
        counts = self._widths.nearest(wanted)
        counts = np.where(counts < wanted - 1e-9, self._widths.above(counts), counts)
        return self._choose({g.name: int(n) for g, n in zip(self._structure.groups, counts, strict=True)})

    def spec(self, spec: Spec) -> Selection:
        """Repeat a spec: its very channels where it lists them, else the least important ones at its sparsities."""
        widths = self._allowed(1.0)
        sparsity = {name: group.sparsity for name, group in spec.groups.items()}
        counts = counts_for_sparsity(self._structure, sparsity, widths=widths)
        given = {n: np.array(g.kept) for n, g in spec.groups.items() if g.kept is not None and n not in self._full}
        for name, kept in given.items():
            counts[name] = len(kept)
        selection = self._choose(counts)
        revived = [name for name, kept in given.items() if self._dead[name][kept].any()]
        if revived:
            log.warning(
                "The spec keeps channels that an earlier pruning has removed, in %s: channels are chosen anew there.",
                ", ".join(revived),
            )
        fixed = {name: kept for name, kept in given.items() if name not in revived}
        return Selection({**selection.kept, **fixed})

    def _choose(self, counts: Mapping[str, int]) -> Selection:
        return choose(self._structure, self._weights, counts, self._ranking, dead=self._dead)

    def _allowed(self, limit: float) -> Widths:
        return allowed_widths(
            self._structure, channel_divisible=self._divisor, full=self._full, limits=limit, dead=self._dead
        )
