"""A small space and a made-up landscape with a known summit, for tests of searches that evaluate nothing real."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from channelwise.search import Candidate, SearchStudy, TargetSpace
from channelwise.select.widths import allowed_widths
from tests.handmade import chain

WIDTHS = (16, 24, 32, 24, 16, 40)
SUMMIT = np.array([0.9, 0.2, 0.6, 0.3, 0.8, 0.5])


def space(
    widths: Sequence[int] = WIDTHS, targets: Mapping[str, float] | None = None, *, parts: int = 1, **limits: Any
) -> TargetSpace:
    """The space of a chain of convolutions, half of its MACs kept."""
    structure = chain(widths, parts)
    return TargetSpace(structure, allowed_widths(structure, **limits), targets or {"macs": 0.5})


def pyramid(widths: Sequence[int], targets: Mapping[str, float], **limits: Any) -> TargetSpace:
    """The same, every layer at half the resolution of the one before it: costly layers are not those with weights."""
    structure = chain(widths)
    terms = [replace(term, scale=term.scale / 2**i) for i, term in enumerate(structure.macs)]
    structure = replace(structure, macs=tuple(terms))
    return TargetSpace(structure, allowed_widths(structure, **limits), targets)


def height(counts: Mapping[str, int]) -> float:
    """A score that falls with the distance to the summit."""
    shares = np.array(list(counts.values())) / np.array(WIDTHS)
    return 1.0 - float(((shares - SUMMIT) ** 2).sum())


def climb(study: SearchStudy, candidates: int = 1000) -> list[Candidate]:
    """Ask and tell until the search ends, or so many times; returns what was asked."""
    asked: list[Candidate] = []
    while len(asked) < candidates and (candidate := study.ask()) is not None:
        asked.append(candidate)
        study.tell(candidate.number, height(candidate.counts))
    return asked
