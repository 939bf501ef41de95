"""From what `prune` is asked for (a removal ratio, a threshold, a spec file) to the channels that stay."""

from __future__ import annotations

import logging

import numpy as np

from channelwise.errors import InvalidArgumentError, NothingToPruneError, UnreachableTargetError
from channelwise.evaluate.candidate import Chooser
from channelwise.methods.loss_curves import loss_curves, severity_profile
from channelwise.methods.options import Target
from channelwise.methods.sensitivity import Sensitivity
from channelwise.methods.spec_file import Spec
from channelwise.select.budget import TOLERANCE, counts_for_sparsity, reachable, solve_budget
from channelwise.select.widths import Widths, allowed_widths
from channelwise.selection import Selection

log = logging.getLogger(__name__)

MAX_SPARSITY = 0.9
"""No group loses more: nothing is known beyond what `ana` measures."""
UNITS = {"macs": "MACs", "params": "parameters"}


class Targets:
    """What is common to all targets: the network, its weights, the groups that stay full, the widths allowed.

    ``why_full`` is for errors: why groups stay full besides those that the user excludes.
    """

    def __init__(self, chooser: Chooser, full: set[str], channel_divisible: int, why_full: str = "") -> None:
        self._chooser = chooser
        self._structure = chooser.structure
        self._full, self._why_full = full, why_full
        self._divisor = channel_divisible
        self._widths = self._allowed(MAX_SPARSITY)

    def budget(self, target: Target, sensitivity: Sensitivity) -> Selection:
        """Keep the share of the full model's MACs or parameters, all groups losing equally much score.

        Raises:
            InvalidArgumentError: both are given.
            UnreachableTargetError: with the range that can be reached.
            NothingToPruneError: every group is excluded.
        """
        if len(target.shares) > 1:
            raise InvalidArgumentError(f"The iterative method meets one target, macs or params, not {target}.")
        ((cost, share),) = target.shares.items()
        if not self._widths.free.any():
            raise NothingToPruneError(
                f"No channel group is left to prune: all are excluded or at their smallest width.{self._why_full}"
            )
        low, high = reachable(self._structure, cost, widths=self._widths)
        if not low * (1 - TOLERANCE) <= share <= high * (1 + TOLERANCE):
            raise UnreachableTargetError(
                f"{target} cannot be reached: with these excludes and channel_divisible={self._divisor} between "
                f"{1 - high:.3f} and {1 - low:.3f} of the {UNITS[cost]} of the original model can be removed (at most "
                f"{MAX_SPARSITY:.0%} of a group's channels)."
                + (f" An earlier pruning has removed {1 - high:.3f} already." if share > high else "")
                + self._why_full
            )
        profile = severity_profile(loss_curves(self._structure, sensitivity))
        return self._chooser(
            solve_budget(self._structure, share, cost, profile=profile, widths=self._widths, words=target.words)
        )

    def threshold(self, threshold: float, sensitivity: Sensitivity) -> Selection:
        """Take every group as far as it loses at most the share ``threshold`` of the score when pruned alone."""
        curves = loss_curves(self._structure, sensitivity)
        limit = np.array(
            [curves[g.name].largest_sparsity(threshold) if g.name in curves else 0.0 for g in self._structure.groups]
        )
        wanted = self._widths.size * (1 - np.minimum(limit, MAX_SPARSITY))
        counts = self._widths.nearest(wanted)
        counts = np.where(counts < wanted - 1e-9, self._widths.above(counts), counts)
        return self._chooser({g.name: int(n) for g, n in zip(self._structure.groups, counts, strict=True)})

    def spec(self, spec: Spec) -> Selection:
        """Repeat a spec: its very channels where it lists them, else the least important ones at its sparsities."""
        widths = self._allowed(1.0)
        sparsity = {name: group.sparsity for name, group in spec.groups.items()}
        counts = counts_for_sparsity(self._structure, sparsity, widths=widths)
        given = {n: np.array(g.kept) for n, g in spec.groups.items() if g.kept is not None and n not in self._full}
        for name, kept in given.items():
            counts[name] = len(kept)
        selection = self._chooser(counts)
        revived = [name for name, kept in given.items() if self._chooser.dead[name][kept].any()]
        if revived:
            log.warning(
                "The spec keeps channels that an earlier pruning has removed, in %s: channels are chosen anew there.",
                ", ".join(revived),
            )
        fixed = {name: kept for name, kept in given.items() if name not in revived}
        return Selection({**selection.kept, **fixed}, selection.network)

    def _allowed(self, limit: float) -> Widths:
        return allowed_widths(
            self._structure, channel_divisible=self._divisor, full=self._full, limits=limit, dead=self._chooser.dead
        )
