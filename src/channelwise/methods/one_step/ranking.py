"""Which channels of a candidate stay: the ranking of a search, and the same one again when it is pruned to."""

from __future__ import annotations

import logging

from channelwise.api import ChannelGraph
from channelwise.evaluate.candidate import Chooser
from channelwise.evaluate.repair import Repair
from channelwise.ranking import Criterion, Reconstruction, bind, names

log = logging.getLogger(__name__)

PLAIN = "consumer_l2"
"""The ranking by default, where weights are not re-fitted."""
REFIT = Reconstruction.__name__.lower()
"""The ranking by default, where they are: the images say which channels a re-fit cannot make good."""


def ranking_name(ranking: str | Criterion | None, *, refit: bool) -> str:
    """What a search records of its ranking; None for the default."""
    if ranking is None:
        return REFIT if refit else PLAIN
    return ranking if isinstance(ranking, str) else getattr(ranking, "__name__", type(ranking).__name__)


def ranked(graph: ChannelGraph, ranking: str | Criterion | None, repair: Repair, *, refit: bool) -> Chooser:
    """Chooses the channels of candidates by ``ranking``; None for the default."""

    def bound() -> Criterion:
        default = Reconstruction(grams=repair.images.grams(graph)) if refit and ranking is None else PLAIN
        return bind(default if ranking is None else ranking, graph.model, graph.structure)

    return Chooser(graph, bound)


def ranked_as_recorded(graph: ChannelGraph, name: str, ranking: str | Criterion | None, repair: Repair) -> Chooser:
    """Chooses channels by ``ranking``, or by the one whose name a search recorded."""
    if ranking is None and name in names():
        ranking = name
    refit = name == REFIT and repair.images is not None
    if ranking is None and not refit and name != PLAIN:
        log.warning(
            "The search ranked channels by %r, which needs %s: %r is used instead.",
            name, "images (loader=...)" if name == REFIT else "to be given (ranking=...)", PLAIN,
        )  # fmt: skip
    return ranked(graph, ranking, repair, refit=refit)
