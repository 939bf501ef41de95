"""From a traced model and ratios to a search space and a supernet that has been seen to compute the right thing."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from channelwise.api import ChannelGraph
from channelwise.errors import InvalidArgumentError, NothingToPruneError
from channelwise.inputs.example import as_arguments, varied
from channelwise.methods.arguments import listed
from channelwise.methods.ofa.choices import Choice, width_choice
from channelwise.methods.ofa.kernels import kernel_candidates
from channelwise.methods.ofa.space import SearchSpace
from channelwise.methods.ofa.supernet import Supernet, build_supernet
from channelwise.ranking import Criterion
from channelwise.select.excludes import match_excludes
from channelwise.select.widths import check_count, is_number
from channelwise.verify.comparing import difference, run_once

log = logging.getLogger(__name__)


def search_space(
    graph: ChannelGraph,
    ratios: Sequence[float],
    divisor: int,
    excludes: Any,
    *,
    ends: bool,
    kernels: bool,
) -> SearchSpace:
    """The widths of every group and the kernels of large convolutions.

    Arguments:
        ratios: widths as shares of the original ones, 1 among them.
        divisor: widths are multiples of this, where layers are wide enough.
        excludes: what keeps its width and kernel, see `match_excludes`.
        ends: the first and the last convolution keep theirs, too.

    Raises:
        InvalidArgumentError: an argument is wrong.
        NothingToPruneError: nothing is left to choose.
    """
    shares = check_ratios(ratios)
    check_count("channel_divisible", divisor)
    structure = graph.structure
    fixed = dict.fromkeys(match_excludes(structure, excludes, graph.model), "excluded")
    convolutions = [term.module for term in structure.macs if "convolution" in term.operation]
    if ends and convolutions:
        for module, why in ((convolutions[0], "first convolution"), (convolutions[-1], "last convolution")):
            fixed |= {group.name: why for group in structure.groups if module in group.layers}
    widths = [width_choice(group, shares, int(divisor), fixed.get(group.name, "")) for group in structure.groups]
    elastic = {layer for group in structure.groups if group.name not in fixed for layer in group.layers}
    space = SearchSpace(structure, widths + (_kernels(graph, elastic) if kernels else []))
    if not len(space.free):
        reasons = sorted({choice.fixed for choice in space.choices if choice.fixed})
        raise NothingToPruneError(
            "A supernet needs at least one layer whose width can change, and there is none: "
            + (f"{', '.join(reasons)}." if reasons else "all channels are frozen, see the graph's frozen list.")
        )
    return space


def checked_supernet(
    graph: ChannelGraph, space: SearchSpace, ranking: str | Criterion, inputs: Any
) -> tuple[Supernet, nn.Module]:
    """The supernet at full width. At the smallest width it computes what the pruned original does: that is tried.

    Layers for which it does not (code that reaches around the modules, for example) keep their width, with the reason.
    """
    while True:
        supernet, model = build_supernet(graph, space, ranking)
        why = _problem(graph, supernet, model, space.minimum, inputs)
        guilty = [] if why is None else _guilty(graph, supernet, model, inputs)
        supernet.activate(model, space.maximum)
        if why is None:
            return supernet, model
        log.info("%s cannot be elastic: %s.", listed([space.names[i] for i in guilty]), why)
        space = _fixed(space, guilty, f"does not adapt: {why}")


def _problem(graph: ChannelGraph, supernet: Supernet, model: nn.Module, values: np.ndarray, inputs: Any) -> str | None:
    """What differs between the subnet of these widths, at full kernels, and the original pruned alike; or None."""
    args, kwargs = as_arguments(inputs)
    args, kwargs = varied(args), varied(kwargs)
    slim = graph.slim(supernet.original_selection(values))
    flags = [(module, module.training) for module in model.modules()]
    try:
        expected = run_once(slim, args, kwargs)
        supernet.activate(model, supernet.built.with_full_kernels(values))
        return difference(run_once(model, args, kwargs), expected)
    except Exception as error:  # the user's forward can raise anything
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"
    finally:
        for module, training in flags:
            module.training = training


def _guilty(graph: ChannelGraph, supernet: Supernet, model: nn.Module, inputs: Any) -> list[int]:
    """Choices that cannot be at their smallest, found by adding one after the other to those that can."""
    space = supernet.built
    values, guilty = space.maximum.copy(), []
    for i in space.free:
        values[i] = space.minimum[i]
        if _problem(graph, supernet, model, values, inputs) is not None:
            values[i] = space.maximum[i]
            guilty.append(int(i))
    return guilty or [int(i) for i in space.free]


def check_ratios(ratios: Any) -> tuple[float, ...]:
    """Ascending ratios. Raises InvalidArgumentError unless they are numbers in (0, 1], 1 among them."""
    if not isinstance(ratios, Sequence) or isinstance(ratios, (str, bytes)) or not len(ratios):
        raise InvalidArgumentError(f"expand_ratio must be a list of ratios such as [0.5, 0.75, 1], not {ratios!r}.")
    for ratio in ratios:
        if not is_number(ratio) or not 0 < ratio <= 1:
            raise InvalidArgumentError(
                f"expand_ratio holds {ratio!r}: ratios are shares of the original width, in (0, 1]."
            )
    if 1 not in ratios:
        raise InvalidArgumentError(
            f"expand_ratio={list(ratios)!r} lacks 1: the supernet contains the original network. Add 1, or start from "
            "a network that is pruned already."
        )
    return tuple(sorted({float(ratio) for ratio in ratios}))


def _kernels(graph: ChannelGraph, elastic: set[str]) -> list[Choice]:
    found = []
    for name, module in graph.model.named_modules():
        candidates = kernel_candidates(module) if name in elastic else ()
        if len(candidates) > 1:
            found.append(Choice("kernel", name, (name,), candidates))
    return found


def _fixed(space: SearchSpace, guilty: Sequence[int], why: str) -> SearchSpace:
    choices = list(space.choices)
    for i in guilty:
        choices[i] = replace(choices[i], candidates=choices[i].candidates[-1:], fixed=why)
    return SearchSpace(space.structure, choices)
