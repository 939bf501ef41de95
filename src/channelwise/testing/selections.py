"""Selections for checks: random ones, balanced or not, and parts of a selection."""

from __future__ import annotations

import numpy as np

from channelwise.api import ChannelGraph
from channelwise.selection import Selection
from channelwise.structure import Structure


def random_selection(graph: ChannelGraph, share: float, seed: int) -> Selection:
    """A random ``share`` of every group is kept."""
    if not graph.groups:
        return Selection({})
    generator = np.random.default_rng(seed)
    return graph.select(sparsity=1 - share, ranking=lambda group, tensors: generator.random(group.size))


def unbalanced_selection(graph: ChannelGraph, seed: int) -> Selection:
    """Another share of every group: code that finds channels by fractions of the width is right for balanced ones."""
    generator = np.random.default_rng(seed)
    kept = {}
    for group in graph.groups:
        most = min(map(len, group.members))
        count = int(generator.integers(max(min(2, most), group.least), most + 1))
        kept[group.name] = np.sort(np.concatenate([generator.choice(m, count, replace=False) for m in group.members]))
    return Selection(kept)


def only(structure: Structure, selection: Selection, wanted: set[str]) -> Selection:
    """``selection`` in the groups ``wanted``, everything kept elsewhere."""
    return Selection(
        kept={g.name: selection.kept[g.name] if g.name in wanted else np.arange(g.size) for g in structure.groups}
    )
