"""Selections on random networks as plain data: balanced and unbalanced ones, and extreme ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from channelwise import ChannelGraph, Selection
from channelwise.structure import Group

HOWS = ("share", "unbalanced", "one kept", "all but one", "some groups")


@dataclass(frozen=True)
class Choice:
    """``how`` many channels every group keeps, ``share`` of them where that is a question, and a seed for which.

    ``least``: so many are kept where there are so many.
    """

    how: str
    share: float
    seed: int
    least: int = 1

    def __call__(self, graph: ChannelGraph) -> Selection:
        """The selection on this graph."""
        random = np.random.default_rng(self.seed)
        return Selection({group.name: self._kept(group, random) for group in graph.groups})

    def _kept(self, group: Group, random: np.random.Generator) -> np.ndarray:
        members = group.members
        most = len(members[0])
        count = {
            "share": max(round(self.share * most), 1),
            "unbalanced": int(random.integers(1, most + 1)),
            "one kept": 1,
            "all but one": most - 1,
            "some groups": most if random.random() < self.share else max(most // 2, 1),
        }[self.how]
        count = max(count, min(self.least, most), group.least)
        return np.sort(np.concatenate([random.choice(m, count, replace=False) for m in members]))
