"""What can change in a supernet: the widths of channel groups, by ratios, and large kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from channelwise.api import ChannelGraph
from channelwise.errors import SAYS_WHY, InvalidArgumentError, NothingToPruneError
from channelwise.methods.ofa.choices import Choice
from channelwise.methods.ofa.kernels import kernel_candidates
from channelwise.methods.ofa.space import SearchSpace
from channelwise.select.excludes import match_excludes
from channelwise.select.widths import channel_step, check_count, is_number, part_count
from channelwise.structure import Group


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
    space = SearchSpace(structure, widths + (_kernel_choices(graph, elastic) if kernels else []))
    if not len(space.free):
        reasons = sorted({choice.fixed for choice in space.choices if choice.fixed})
        raise NothingToPruneError(
            "A supernet needs at least one layer whose width can change, and there is none: "
            + (f"{', '.join(reasons)}." if reasons else f"all channels are frozen, {SAYS_WHY}.")
        )
    return space


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


def width_choice(group: Group, ratios: Sequence[float], divisor: int, fixed: str = "") -> Choice:
    """The widths of a group: every ratio of its size, rounded to the divisor; the full size for ratio 1.

    The divisor is halved until the smallest ratio of the group reaches it, so that narrow layers have a choice, too.
    """
    modules = group.layers
    if fixed:
        return Choice("width", group.name, modules, (group.size,), fixed)
    step = channel_step(group, divisor)
    while divisor > 1 and step > max(1, math.floor(min(ratios) * group.size)):
        divisor //= 2
        step = channel_step(group, divisor)
    fewest = math.ceil(group.least * part_count(group) / step)
    found = set()
    for ratio in ratios:
        nearest = step * max(fewest, math.floor(ratio * group.size / step + 0.5))
        found.add(group.size if ratio == 1 else min(nearest, group.size))
    why = "" if len(found) > 1 else f"its {group.size} channels leave no choice"
    return Choice("width", group.name, modules, tuple(sorted(found)), why)


def _kernel_choices(graph: ChannelGraph, layers: set[str]) -> list[Choice]:
    sides = {name: kernel_candidates(module) for name, module in graph.model.named_modules() if name in layers}
    return [Choice("kernel", name, (name,), found) for name, found in sides.items() if len(found) > 1]
