"""From a candidate of a search to the pruned model: its channels, cut and repaired."""

from __future__ import annotations

import logging

from torch import nn

from channelwise import recovery
from channelwise.api import ChannelGraph
from channelwise.evaluate.candidate import NOTE, unpack
from channelwise.evaluate.evaluation import Evaluation
from channelwise.evaluate.job import same_randomness
from channelwise.evaluate.repair import Repair, has_batch_norm
from channelwise.evaluate.scores import as_score
from channelwise.inputs.batches import evaluating
from channelwise.inputs.check import model_device
from channelwise.methods.one_step.ranking import ranked_as_recorded
from channelwise.methods.one_step.space import candidate_space
from channelwise.methods.options import DIVISOR, Channels, Target
from channelwise.recovery.agreement import IncomparableError, Score
from channelwise.search import SearchResults, Trial
from channelwise.search.results import Key
from channelwise.selection import Selection
from channelwise.surgery.slim import attach_sparse_state_dict

log = logging.getLogger(__name__)


def selection_of(
    graph: ChannelGraph, results: SearchResults, trial: Trial, channels: Channels, repair: Repair
) -> Selection:
    """The candidate's channels, or those of the nearest one whose widths are multiples of another divisor.

    ``channels`` and ``repair`` (by its images) say which channels the latter keeps.

    Raises:
        ResultsFileError: what is stored of the candidate is damaged.
        UnreachableTargetError: no candidate has such widths.
    """
    options, divisor = results.key.options, channels.channel_divisible
    searched = options.get("channel_divisible", DIVISOR)
    # The default means: no preference.
    if divisor == DIVISOR or searched % divisor == 0:
        return unpack(trial.notes.get(NOTE), graph.structure, results.where)
    chooser = ranked_as_recorded(graph, str(options.get("ranking")), channels.ranking, repair)
    space = candidate_space(chooser, options.get("excluded", ()), divisor, Target(**results.key.targets))
    log.warning(
        "The search had channel_divisible=%s: the nearest candidate with %d is taken, whose score is not known. For "
        "the best of these, search with channel_divisible=%d.", searched, divisor, divisor
    )  # fmt: skip
    return chooser(space.named(space.candidate(trial.counts)))


def mention_missing_repair(model: nn.Module, results: SearchResults, repair: Repair, *, refit: bool) -> None:
    """Say so if the candidate had a repair that cannot be repeated for want of images or of the user's function."""
    missing = []
    if refit and repair.images is None:
        missing.append("re-fitted weights")
    if repair.calibrates == "no" and has_batch_norm(model):
        missing.append("re-estimated batch norms")
    if missing:
        by_function = results.key.options.get("calibrated") == "function" and not refit
        log.warning(
            "The pruned model comes without %s, which it needs before it is judged: give prune(..., %s) to a runner, "
            "or OneStep(..., repair=Repair(...)).",
            " and ".join(missing), "calibration_fn=..." if by_function else "loader=...",
        )  # fmt: skip


def repaired_slim(
    graph: ChannelGraph, selection: Selection, repair: Repair, *, refit: bool, score: Score | None = None
) -> nn.Module:
    """The slim model, repaired, with the method ``sparse_state_dict()``. The caller's random state stays.

    It is repaired as a candidate is or, if weights are re-fitted, as ``score`` says is best, see
    `channelwise.recovery.repair`.
    """
    slim, images = graph.slim(selection), repair.images
    with evaluating(slim), same_randomness(model_device(slim)):
        if not refit or images is None:
            repair.repairer(graph)(slim, graph.model, graph.structure, selection)
        else:
            calibrate = repair.repairer().calibrate if repair.calibration_fn is not None else None
            try:
                recovery.repair(
                    slim, graph, selection, images.batches, forward_fn=images.forward_fn, score=score,
                    statistics=calibrate, grams=images.grams(graph),
                )  # fmt: skip
            except IncomparableError as error:
                log.warning("%s Repaired as the candidates of the search were.", error)
                repair.repairer(graph, refit=True)(slim, graph.model, graph.structure, selection)
    for parameter in slim.parameters():
        parameter.grad = None
    return attach_sparse_state_dict(slim, graph.structure, selection)


def score_of(evaluation: Evaluation, key: Key) -> Score:
    """How good a model is to a search, larger is better."""

    def score(model: nn.Module) -> float:
        with same_randomness(model_device(model)):
            return key.merit(as_score(evaluation.eval_fn(model, *evaluation.args)))

    return score


def sparse_from_slim(graph: ChannelGraph, selection: Selection, slim: nn.Module) -> nn.Module:
    """The sparse model with the weights and statistics of the slim one."""
    sparse = graph.sparse(selection)
    sparse.load_state_dict(slim.sparse_state_dict())  # type: ignore[operator]
    return sparse
