"""Which channel groups a method leaves alone: what the user excludes, and those in grouped convolutions."""

from __future__ import annotations

import logging
from typing import Any

from channelwise.api import ChannelGraph
from channelwise.errors import SAYS_WHY, NothingToPruneError
from channelwise.methods.arguments import listed, plural
from channelwise.select.excludes import match_excludes
from channelwise.structure import Group, Structure

log = logging.getLogger(__name__)


def excluded_groups(graph: ChannelGraph, excludes: Any, *, with_group_conv: bool) -> set[str]:
    """Names of the groups that stay as they are.

    Raises:
        NothingToPruneError: these are all.
    """
    structure = graph.structure
    excluded = match_excludes(structure, excludes, graph.model)
    if not with_group_conv:
        grouped = {g.name for g in structure.groups if _through_grouped_convolution(g, structure)} - excluded
        if grouped:
            log.info(
                "%s left alone because of grouped convolutions (with_group_conv=True includes them): %s.",
                plural(len(grouped), "group"), listed(sorted(grouped)),
            )  # fmt: skip
        excluded |= grouped
    if len(excluded) == len(structure.groups):
        raise NothingToPruneError(
            "No channel group is left to prune: "
            + (f"all {len(excluded)} are excluded." if excluded else f"all channels are frozen, {SAYS_WHY}.")
        )
    return excluded


def _through_grouped_convolution(group: Group, structure: Structure) -> bool:
    """Depthwise ones are not counted."""
    for slots in group.slots:
        info = structure.tensors[slots.tensor]
        if info.blocks == 1:
            continue
        # Axis 0 counts input channels in transposed convolutions, output channels in the others.
        transposed = (slots.axis == 0) == (slots.role == "input")
        inputs_per_block = info.shape[0] // info.blocks if transposed else info.shape[1]
        if inputs_per_block > 1:
            return True
    return False
