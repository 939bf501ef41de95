"""Other ways through a module than ``forward``, such as ``forward_split``, which an exporter puts in its place."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from torch import nn

from channelwise.tracing.code.numbers import attribute_of
from channelwise.tracing.code.watch import names_reached


@dataclass(frozen=True, eq=False)
class Candidate:
    """A number in a module with the value that a run of ``labels`` has as its length."""

    module: str
    cls: type
    attribute: str
    labels: np.ndarray


@cache
def other_forwards(cls: Any) -> Mapping[str, frozenset[str]]:
    """The methods ``forward_…`` of a class that take what ``forward`` takes and are not called by it.

    Each with the names that it reads and ``forward`` does not.
    """
    names = [name for name in dir(cls) if name.startswith("forward_")]
    if not names:
        return {}
    used = names_reached(cls, "forward")
    arguments = _arguments(cls.forward)
    return {
        name: names_reached(cls, name) - used
        for name in names
        if name not in used and _arguments(getattr(cls, name)) == arguments
    }


def readers(cls: Any, number: str) -> list[str]:
    """The other ways that read a number which ``forward`` does not read."""
    return [way for way, names in other_forwards(cls).items() if attribute_of(number) in names]


def candidates_elsewhere(model: nn.Module, seen: Sequence[tuple[str, Sequence[np.ndarray]]]) -> list[Candidate]:
    """Numbers of users' modules that only other ways read, and that are as large as a run of labels seen in the module.

    These ways did not run, so that no number remembers what it was used for: equal value has to do.
    """
    modules: dict[str, Any] = dict(model.named_modules())
    found: dict[tuple[str, str], Candidate] = {}
    for name, runs in seen:
        module = modules[name]
        if not other_forwards(module.__class__):
            continue
        for attribute, value in module.__dict__.items():
            run = next((r for r in runs if isinstance(value, int) and r.size == value), None)
            if run is not None and readers(type(module), attribute):
                found.setdefault((name, attribute), Candidate(name, type(module), attribute, run))
    return list(found.values())


def _arguments(function: Callable[..., Any]) -> list[str] | None:
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return None
