"""Building a supernet out of a traced model, and checking that it computes the right thing."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from channelwise.api import ChannelGraph
from channelwise.errors import NothingToPruneError
from channelwise.inputs.check import SUPERNET
from channelwise.inputs.example import as_arguments, varied
from channelwise.methods.arguments import listed
from channelwise.methods.ofa.kernels import ElasticKernel
from channelwise.methods.ofa.plan import Plans
from channelwise.methods.ofa.sorting import importance_order, sorted_tensors
from channelwise.methods.ofa.space import SearchSpace
from channelwise.methods.ofa.supernet import Supernet
from channelwise.ranking import Criterion, Weights, bind
from channelwise.surgery.clone import clone_module, stand_in
from channelwise.verify.outputs import unlike

log = logging.getLogger(__name__)


def checked_supernet(
    graph: ChannelGraph, space: SearchSpace, ranking: str | Criterion, inputs: Any
) -> tuple[Supernet, nn.Module]:
    """The supernet at full width. It is tried whether at the smallest width it computes what the pruned original does.

    Layers for which it does not (code that reaches around the modules, for example) keep their width, with the reason.
    """
    while True:
        supernet, model = build_supernet(graph, space, ranking)
        why = _problem(graph, supernet, model, space.minimum, inputs)
        guilty = [] if why is None else _guilty(graph, supernet, model, inputs)
        supernet.activate(model, space.maximum)
        if why is None:
            return supernet, model
        if not guilty:
            # With every choice fixed there is nothing left to fix: another round would find the same.
            raise NothingToPruneError(
                f"{type(graph.model).__name__} cannot be a supernet: at full width already, {why}. Does the model give "
                "the same outputs when it runs twice?"
            )
        log.info("%s cannot be elastic: %s.", listed([space.names[i] for i in guilty]), why)
        space = _fixed(space, guilty, f"does not adapt: {why}")


def _problem(graph: ChannelGraph, supernet: Supernet, model: nn.Module, values: np.ndarray, inputs: Any) -> str | None:
    """What differs between this subnet, at full kernels, and the original pruned in the same way; None if nothing."""
    args, kwargs = as_arguments(inputs)
    args, kwargs = varied(args), varied(kwargs)
    selection = supernet.original_selection(values)
    flags = [(module, module.training) for module in model.modules()]
    try:
        supernet.activate(model, supernet.built.with_full_kernels(values))
        return unlike(lambda: model, lambda: graph.slim(selection), args, kwargs)
    except Exception as error:  # the user's forward can raise anything
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"
    finally:
        for module, training in flags:
            module.training = training


def _guilty(graph: ChannelGraph, supernet: Supernet, model: nn.Module, inputs: Any) -> list[int]:
    """The choices that cannot be at their smallest: one after the other is added to those that can."""
    space = supernet.built
    values, guilty = space.maximum.copy(), []
    for i in space.free:
        values[i] = space.minimum[i]
        if _problem(graph, supernet, model, values, inputs) is not None:
            values[i] = space.maximum[i]
            guilty.append(int(i))
    return guilty or [int(i) for i in space.free]


def build_supernet(graph: ChannelGraph, space: SearchSpace, ranking: str | Criterion) -> tuple[Supernet, nn.Module]:
    """The supernet of a traced model, and its dynamic model at full width."""
    structure, tensors = graph.structure, graph.tensors()
    weights = Weights.of(tensors, structure)
    orders = importance_order(structure, weights, bind(ranking, graph.model, structure))
    with torch.inference_mode(False), torch.no_grad():
        moved = sorted_tensors(structure, tensors, orders)
        model = clone_module(graph.model, {id(tensors[n]): stand_in(tensors[n], t) for n, t in moved.items()})
    plans = Plans(structure, space, model)
    modules = dict(model.named_modules())
    for plan in plans.modules:
        module = modules[plan.name]
        if plan.tensors:
            module.__class__ = plan.dynamic
            module.__dict__.update(plan.original)
            if plan.normed is not None:
                module.__dict__["_normed"] = plan.normed
        if plan.kernel >= 0:
            ElasticKernel.add_matrices(module, space.choices[plan.kernel].candidates)
    supernet = Supernet(structure, space, plans, orders)
    model.__dict__[SUPERNET] = supernet.digest
    return supernet, model


def _fixed(space: SearchSpace, guilty: Sequence[int], why: str) -> SearchSpace:
    choices = list(space.choices)
    for i in guilty:
        choices[i] = replace(choices[i], candidates=choices[i].candidates[-1:], fixed=why)
    return SearchSpace(space.structure, choices)
