"""Which channel groups a method leaves alone: what the user excludes, and those in grouped convolutions."""

from __future__ import annotations

import logging
from typing import Any

from channelwise.channel_graph import ChannelGraph
from channelwise.errors import NothingToPruneError
from channelwise.excludes import match_excludes
from channelwise.methods.analysis import grouped_convolution_groups
from channelwise.methods.arguments import listed, plural

log = logging.getLogger(__name__)


def excluded_groups(graph: ChannelGraph, excludes: Any, *, with_group_conv: bool) -> set[str]:
    """Names of the groups that stay as they are.

    Raises:
        NothingToPruneError: these are all.
    """
    structure = graph.structure
    excluded = match_excludes(structure, excludes, graph.model)
    if not with_group_conv:
        grouped = set(grouped_convolution_groups(structure)) - excluded
        if grouped:
            log.info(
                "%s left alone because of grouped convolutions (with_group_conv=True includes them): %s.",
                plural(len(grouped), "group"), listed(sorted(grouped)),
            )  # fmt: skip
        excluded |= grouped
    if len(excluded) == len(structure.groups):
        raise NothingToPruneError(
            "No channel group is left to prune: "
            + (f"all {len(excluded)} are excluded." if excluded else "all channels are frozen, see graph.frozen.")
        )
    return excluded
