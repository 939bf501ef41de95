"""Which channel groups the questions of a trace are about, and where they were asked."""

from __future__ import annotations

from collections import Counter

import numpy as np

from channelwise.solve.build import Solution
from channelwise.tracing.labels import Question
from channelwise.tracing.recording import Trace

Asked = dict[str, list[Question]]
"""The groups with questions, and all questions about each."""

Site = tuple[type | str, int]
"""A place in the code of a class: which question it is of those of a module."""


def asked_of(trace: Trace, solution: Solution) -> Asked:
    """The groups touched by questions."""
    found: Asked = {}
    for question in trace.space.questions:
        for name in solution.groups_of(solution.channel[question.labels]):
            found.setdefault(name, []).append(question)
    return found


def asked_in(trace: Trace, solution: Solution, module: str) -> set[str]:
    """The groups touched by questions of a module."""
    asked = [q.labels for q in trace.space.questions if q.reason.module == module]
    return solution.groups_of(solution.channel[np.concatenate(asked)]) if asked else set()


def sites_of(trace: Trace) -> dict[int, Site]:
    """The site of every question, by the question's id."""
    counts: Counter[str] = Counter()
    found = {}
    for question in trace.space.questions:
        module = question.reason.module
        found[id(question)] = (trace.types.get(module, module), counts[module])
        counts[module] += 1
    return found
