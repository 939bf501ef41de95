"""The best default there is, in one call: widths, channels and repair from calibration images alone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from channelwise import recovery
from channelwise.api import ChannelGraph, trace
from channelwise.errors import InvalidArgumentError
from channelwise.evaluate.arguments import check_args, check_callable
from channelwise.evaluate.candidate import Chooser
from channelwise.evaluate.images import images_of
from channelwise.evaluate.scores import as_score
from channelwise.inputs.batches import ForwardFn, evaluating
from channelwise.methods.options import DIVISOR, Target
from channelwise.methods.summary import summary_of
from channelwise.ranking import Fisher, RandomProjection, Reconstruction, bind
from channelwise.recovery import compensate_from_grams, recalibrate
from channelwise.recovery.agreement import Score, agreement, held_out
from channelwise.report import Summary
from channelwise.select.widths import check_count
from channelwise.selection import Selection

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Pruned:
    """What `prune` made: the slim ``model``, what it costs (``summary``), and the ``selection`` of ``graph``."""

    model: nn.Module
    summary: Summary
    graph: ChannelGraph
    selection: Selection


def prune(
    model: nn.Module,
    inputs: Any,
    *,
    macs: float | None = None,
    params: float | None = None,
    loader: Any = None,
    batches: int | None = None,
    forward_fn: ForwardFn | None = None,
    eval_fn: Callable[..., Any] | None = None,
    eval_args: Sequence[Any] = (),
    excludes: Any = (),
    channel_divisible: int = DIVISOR,
) -> Pruned:
    """Prune a trained model to a budget and repair it, without a search and without labels.

    Groups keep the channels that a re-fit of the layers behind them could least make good (`Reconstruction`). How many,
    either that says, too, or the Fisher information of random projections of the outputs: both are tried, as neither is
    the better on every network. Of several repairs the best is kept (`channelwise.recovery.repair`). ``model`` is not
    touched.

    Args:
        inputs: Example inputs, as for `channelwise.trace`.
        macs, params: Share of the model's MACs or parameters to keep, in (0, 1]; give one of them.
        loader, batches, forward_fn: Calibration images from the training set, see `Images`; a thousand by default.
        eval_fn: Called as ``eval_fn(model, *eval_args)``; its score says which widths and which repair are best, larger
            is better. Without it, outputs near those of the model do, on every fourth batch.
        excludes: Groups to leave alone: modules, names, patterns or module types.
        channel_divisible: Widths of pruned layers are multiples of this.

    Raises:
        InvalidArgumentError: an argument is wrong, or images are missing.
        UnsupportedModelError, TraceError: the model cannot be traced with these inputs.
        NothingToPruneError, UnreachableTargetError: with the reachable range.
        EvaluationError: a layer reads NaN or infinity on the images, or ``eval_fn`` returned no number.
    """
    Target(macs, params)
    check_count("channel_divisible", channel_divisible)
    images = images_of(loader, batches, forward_fn)
    if images is None:
        raise InvalidArgumentError("prune needs loader=: calibration images, such as a DataLoader of the training set.")
    if eval_fn is not None:
        check_callable(eval_fn, "eval_fn")
    args = check_args(eval_args, "eval_args")
    graph = trace(model, inputs)
    grams, given = images.grams(graph), images.batches
    chooser = Chooser(graph, lambda: bind(Reconstruction(grams=grams), graph.model, graph.structure))
    rankings: dict[str, Any] = {
        "Fisher information": Fisher(RandomProjection(), given, forward_fn=images.forward_fn, quiet=True),
        "reconstruction": chooser.criterion,
    }
    score: Score
    if eval_fn is None:
        score = agreement(graph.model, held_out(given)[1], images.forward_fn)
    else:
        score = partial(_scored, eval_fn, args)
    found: dict[str, tuple[float, Selection]] = {}
    for name, ranking in rankings.items():
        widths = graph.select(
            macs=macs, params=params, ranking=ranking, allocation="global", excludes=excludes,
            channel_divisible=channel_divisible,
        ).counts()  # fmt: skip
        selection = chooser(widths)
        slim = compensate_from_grams(graph.slim(selection), graph.model, graph.structure, selection, grams)
        recalibrate(slim, given, forward_fn=images.forward_fn, graph=graph, selection=selection)
        with torch.no_grad(), evaluating(slim):
            found[name] = score(slim), selection
    best = max(found, key=lambda name: found[name][0])
    log.info("Widths by %s. Kept: %s.", ", ".join(f"{name} {value:.4g}" for name, (value, _) in found.items()), best)
    selection = found[best][1]
    slim = recovery.repair(
        graph.slim(selection), graph, selection, given, forward_fn=images.forward_fn, grams=grams,
        score=None if eval_fn is None else score,
    )  # fmt: skip
    return Pruned(slim, summary_of(graph, selection), graph, selection)


def _scored(eval_fn: Callable[..., Any], args: Sequence[Any], model: nn.Module) -> float:
    return as_score(eval_fn(model, *args))
