"""Other ways through a module than ``forward``, such as ``forward_split``, which an exporter puts in its place."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from torch import nn

from channelwise.tracing.code.numbers import attribute_of, candidates
from channelwise.tracing.code.watch import names_reached
from channelwise.tracing.recording import Candidate, Runs


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


def candidates_elsewhere(model: nn.Module, calls: Sequence[Runs]) -> list[Candidate]:
    """Numbers of users' modules that only other ways read, and that are lengths which operations in them saw."""
    types: dict[str, Any] = {name: type(module) for name, module in model.named_modules()}
    calls = [(name, runs) for name, runs in calls if other_forwards(types[name])]
    return [c for c in candidates(model, calls) if c.module == c.seen and not c.alone and readers(c.cls, c.attribute)]


def _arguments(function: Callable[..., Any]) -> list[str] | None:
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return None
