"""The repairs there are, tried one after another on a slim model; the one that is worth most is kept."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from channelwise.api import ChannelGraph
from channelwise.errors import InvalidArgumentError
from channelwise.inputs.batches import ForwardFn, batches_of, evaluating
from channelwise.recovery.agreement import Score, agreement, held_out
from channelwise.recovery.batchnorm import recalibrate
from channelwise.recovery.compensate import compensate
from channelwise.recovery.compensate_from_grams import compensate_from_grams
from channelwise.selection import Selection
from channelwise.statistics import Grams, gather
from channelwise.surgery.clone import clone_module
from channelwise.surgery.slim import check_slim, own_parameters
from channelwise.tensors import named_tensors

log = logging.getLogger(__name__)

Statistics = Callable[[nn.Module], Any]
"""What sets the statistics of batch norms, in place."""


def repair(
    slim: nn.Module,
    graph: ChannelGraph,
    selection: Selection,
    loader: Any,
    batches: int | None = None,
    *,
    forward_fn: ForwardFn | None = None,
    score: Score | None = None,
    statistics: Statistics | None = None,
    grams: Grams | None = None,
) -> nn.Module:
    """Try every repair on ``slim`` and keep the best, in place: none makes every network better.

    They are: batch norms re-estimated (`recalibrate`); before that, weights re-fitted in closed form
    (`compensate_from_grams`); or all layer by layer (`compensate`), with plain or with paired statistics. Which one is
    best is said by ``score``, or else by how near the outputs are to the dense model's on every fourth batch, which the
    repairs do not see then; the best is made anew from all batches.

    Args:
        slim: made by ``graph.slim(selection)``; changed in place and returned. ``graph.model`` is not touched.
        loader: calibration images, see `channelwise.inputs.batches`; no labels are needed.
        score: called with a repaired model; larger is better. Use images that ``loader`` does not have.
        statistics: what sets the statistics of batch norms, in the place of `recalibrate`.
        grams: what was gathered from the same batches before, so that it is not gathered anew.

    Raises:
        InvalidArgumentError: the loader yields nothing usable, or without ``score`` outputs cannot be compared.
        EvaluationError: a layer reads NaN, infinity or numbers too large on a batch; it names the batch.
    """
    check_slim(slim, graph.structure, selection)
    given = list(batches_of(loader, batches))
    fit = given
    if score is None:
        fit, held = held_out(given)
        score, grams = agreement(graph.model, held, forward_fn), None
    tries = _Tries(graph, selection, forward_fn, statistics)
    worth: dict[str, float] = {}
    best, repaired = "", slim
    for name in list(tries.names):
        model = clone_module(slim, {})
        if name in tries.names and tries(name, model, fit, grams):
            with torch.no_grad(), evaluating(model):
                worth[name] = float(score(clone_module(model, {})))
            if not best or worth[name] > worth[best]:
                best, repaired = name, model
    shown = ", ".join(f"{name} {value:.4g}" for name, value in worth.items())
    log.info("Repairs and what they are worth: %s. Kept: %s.", shown, best)
    if len(fit) < len(given):
        repaired = clone_module(slim, {})
        tries(best, repaired, given, None)
    own_parameters(slim, graph.model, dict(slim.named_parameters(remove_duplicate=False)))
    values = named_tensors(repaired)
    with torch.no_grad():
        for name, tensor in named_tensors(slim).items():
            tensor.copy_(values[name])
    return slim


class _Tries:
    """The repairs by name."""

    def __init__(
        self, graph: ChannelGraph, selection: Selection, forward_fn: ForwardFn | None, statistics: Statistics | None
    ) -> None:
        self._graph, self._selection, self._forward, self._statistics = graph, selection, forward_fn, statistics
        self.names = ["batch norms", "closed form", "layer by layer"]
        if statistics is None:
            self.names.append("layer by layer, paired")

    def __call__(self, name: str, model: nn.Module, batches: Sequence[Any], grams: Grams | None) -> bool:
        """Repair a model; False if that cannot be done."""
        graph, selection = self._graph, self._selection
        if name.startswith("layer by layer"):
            try:
                compensate(
                    model,
                    graph,
                    selection,
                    batches,
                    forward_fn=self._forward,
                    paired_statistics=name.endswith("paired"),
                )
            except InvalidArgumentError as error:
                log.warning("%s The repairs layer by layer are left out.", error)
                self.names = [other for other in self.names if not other.startswith("layer by layer")]
                return False
        elif name == "closed form":
            found = grams or gather(graph.model, graph.structure, batches, forward_fn=self._forward)
            compensate_from_grams(model, graph.model, graph.structure, selection, found)
        if self._statistics is not None:
            self._statistics(model)
        elif not name.startswith("layer by layer"):
            recalibrate(model, batches, forward_fn=self._forward, graph=graph, selection=selection)
        return True
