"""Candidates that are good without a search: what a guided search evaluates first."""

from __future__ import annotations

import logging
from collections.abc import Callable

from channelwise.api import ChannelGraph
from channelwise.errors import ChannelwiseError
from channelwise.evaluate.candidate import Chooser, Counts
from channelwise.evaluate.images import Images
from channelwise.methods.loss_curves import loss_curves, severity_profile
from channelwise.methods.sensitivity import Sensitivity
from channelwise.ranking import Criterion, Fisher, RandomProjection, bind, comparable, scores
from channelwise.search import TargetSpace
from channelwise.select.allocation import global_counts
from channelwise.select.budget import solve_budget

log = logging.getLogger(__name__)


def priors(
    graph: ChannelGraph,
    chooser: Chooser,
    space: TargetSpace,
    images: Images | None,
    sensitivity: Sensitivity | None = None,
    *,
    quiet: bool = True,
) -> list[Counts]:
    """Counts that meet the first target, the most promising first.

    All channels in one order of importance per cost, by Fisher information of the outputs (if there are images) and by
    the ranking; what a sensitivity analysis says, if there is one; and equal sparsities.
    """
    cost, share = next(iter(space.targets.items()))
    structure, widths, weights = graph.structure, space.widths, chooser.weights

    def by(criterion: Criterion) -> Counts:
        bound = bind(criterion, graph.model, structure)
        values = {
            g.name: scores(bound, g, weights) for g, free in zip(structure.groups, widths.free, strict=True) if free
        }
        return global_counts(
            structure, values, share, cost, widths, comparable(bound), dead=chooser.dead, words=space.words
        )

    proposals: dict[str, Callable[[], Counts]] = {}
    if images is not None:
        # The outputs alone: what follows the inputs in a batch may be anything.
        fisher = Fisher(RandomProjection(), images.batches, forward_fn=images.forward_fn, quiet=quiet)
        proposals["Fisher information"] = lambda: by(fisher)
    if sensitivity is not None:
        profile = severity_profile(loss_curves(structure, sensitivity))
        proposals["the sensitivity analysis"] = lambda: solve_budget(
            structure, share, cost, profile=profile, widths=widths, words=space.words
        )
    proposals["the ranking"] = lambda: by(chooser.criterion)
    proposals["equal sparsities"] = lambda: solve_budget(structure, share, cost, widths=widths, words=space.words)
    found = []
    for name, propose in proposals.items():
        try:
            found.append(propose())
        except ChannelwiseError as error:
            # A search can do without; what is wrong with the target itself, the space has said before.
            log.info("The search starts without the candidate from %s: %s", name, error)
    return found
