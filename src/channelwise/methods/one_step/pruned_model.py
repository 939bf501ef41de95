"""From a candidate of a search to the pruned model: its channels, cut and repaired."""

from __future__ import annotations

import logging

from torch import nn

from channelwise.api import ChannelGraph
from channelwise.evaluate.candidate import unpack
from channelwise.evaluate.job import same_randomness
from channelwise.evaluate.repair import Calibration, has_batch_norm
from channelwise.inputs.check import model_device
from channelwise.methods.one_step.candidates import Candidates
from channelwise.ranking import Criterion
from channelwise.search import SearchResults, Trial
from channelwise.selection import Selection
from channelwise.surgery.slim import attach_sparse_state_dict

log = logging.getLogger(__name__)

DIVISOR = 2
"""What widths are multiples of by default. Asked for after a search, it is no wish."""


def chosen_channels(
    graph: ChannelGraph,
    results: SearchResults,
    trial: Trial,
    divisor: int,
    ranking: Candidates | str | Criterion | None,
) -> Selection:
    """The candidate's channels, or those of the nearest one whose widths are multiples of ``divisor``.

    ``ranking`` chooses the channels of the latter: that of the search's candidates, if it was in this process.

    Raises:
        ResultsFileError: what is stored of the candidate is damaged.
        UnreachableTargetError: no candidate has such widths.
    """
    options = results.key.options
    searched = options.get("channel_divisible", DIVISOR)
    if divisor == DIVISOR or searched % divisor == 0:
        return unpack(trial.notes.get("kept"), graph.structure, results.where)
    if isinstance(ranking, Candidates):
        ranking = ranking.criterion
    candidates = Candidates(graph, set(options.get("excluded", ())), divisor, ranking, Calibration())
    space = candidates.space(results.key.targets)
    log.warning(
        "The search had channel_divisible=%s: the nearest candidate with %d is taken, whose score is not known. For "
        "the best of these, search with channel_divisible=%d.", searched, divisor, divisor
    )  # fmt: skip
    return candidates.selection(space.named(space.candidate(trial.counts)))


def mention_missing_repair(model: nn.Module, results: SearchResults, calibration: Calibration, *, refit: bool) -> None:
    """Say so if the candidate had a repair that cannot be repeated for want of images or of the user's function."""
    missing = []
    if refit and calibration.loader is None:
        missing.append("re-fitted weights")
    if calibration.loader is None and calibration.function is None and has_batch_norm(model):
        missing.append("re-estimated batch norms")
    if missing:
        by_function = results.key.options.get("calibrated") == "function" and not refit
        log.warning(
            "The pruned model comes without %s, which it needs before it is judged: give prune(..., %s).",
            " and ".join(missing), "calibration_fn=..." if by_function else "loader=...",
        )  # fmt: skip


def repaired_slim(graph: ChannelGraph, selection: Selection, calibration: Calibration, *, refit: bool) -> nn.Module:
    """The slim model, repaired, with the method ``sparse_state_dict()``. The caller's random state stays."""
    slim = graph.slim(selection)
    flags = [(module, module.training) for module in slim.modules()]
    slim.eval()
    with same_randomness(model_device(slim)):
        calibration.finish(slim, graph, selection, refit=refit)
    for module, training in flags:
        module.training = training
    for parameter in slim.parameters():
        parameter.grad = None
    return attach_sparse_state_dict(slim, graph.structure, selection)


def sparse_from_slim(graph: ChannelGraph, selection: Selection, slim: nn.Module) -> nn.Module:
    """The sparse model with the weights and statistics of the slim one."""
    sparse = graph.sparse(selection)
    sparse.load_state_dict(slim.sparse_state_dict())  # type: ignore[operator]
    return sparse
