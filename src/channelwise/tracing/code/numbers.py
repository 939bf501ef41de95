"""Whole numbers that users' modules keep, in attributes and in tuples and lists there: reading and replacing them.

``width`` is the attribute, ``sizes[1]`` the second element of the tuple or list in the attribute ``sizes``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from torch import nn

from channelwise.tracing.recording import Candidate, Runs

_ELEMENT = re.compile(r"(.+)\[(\d+)\]$")


def attribute_of(number: str) -> str:
    """The attribute that a number is, or is in."""
    found = _ELEMENT.match(number)
    return found[1] if found else number


def number_of(module: nn.Module, number: str) -> int | None:
    """The value of a number; None if the module has no such number."""
    value: Any = module.__dict__.get(attribute_of(number))
    found = _ELEMENT.match(number)
    if found:
        value = value[int(found[2])] if type(value) in (tuple, list) and int(found[2]) < len(value) else None
    return value if type(value) is int else None


def with_numbers(attributes: Mapping[str, Any], numbers: Mapping[str, int]) -> dict[str, Any]:
    """The attributes that change, with new values: tuples and lists are new ones."""
    changed: dict[str, Any] = {}
    for number, value in numbers.items():
        found = _ELEMENT.match(number)
        if found is None:
            changed[number] = value
            continue
        old = changed.get(found[1], attributes[found[1]])
        items = list(old)
        items[int(found[2])] = value
        changed[found[1]] = type(old)(items)
    return changed


def candidates(model: nn.Module, calls: Sequence[Runs]) -> list[Candidate]:
    """Numbers of users' modules that are lengths which operations in them saw, the first of each.

    The code of a module may also ask its children: ``self.block.width``.
    """
    found: dict[tuple[str, str], Candidate] = {}
    others: dict[tuple[str, str], dict[bytes, np.ndarray]] = {}
    modules = dict(model.named_modules())
    for name, runs in calls:
        near = {name: modules[name], **{f"{name}.{c}".lstrip("."): m for c, m in modules[name].named_children()}}
        for path, module in near.items():
            if type(module).__module__.startswith("torch.nn."):
                continue
            for number, labels, alone in _seen(module, runs):
                known = found.get((path, number))
                if known is None or known.alone > alone:
                    found[path, number] = Candidate(path, type(module), number, labels, name, alone)
                others.setdefault((path, number), {}).setdefault(labels.tobytes(), labels)
    return [
        replace(c, others=tuple(o for o in others[at].values() if not np.array_equal(o, c.labels)))
        for at, c in found.items()
    ]


def _seen(module: nn.Module, runs: Sequence[np.ndarray]) -> list[tuple[str, np.ndarray, bool]]:
    """Numbers of a module with their runs; whether it is one number in a tuple of which the others were not seen."""
    lengths = [run.size for run in runs]
    found: list[tuple[str, np.ndarray, bool]] = []
    fixed = _kept_by_torch(type(module).__mro__)
    for attribute, value in module.__dict__.items():
        if attribute in fixed:
            continue
        if type(value) is int:
            found += [(attribute, run, False) for run in runs if run.size == value]
        elif type(value) in (tuple, list) and value and all(type(v) is int for v in value):
            at = _position(list(value), lengths)
            if at is not None:
                found += [(f"{attribute}[{k}]", runs[at + k], len(value) == 1) for k in range(len(value))]
            else:
                found += [
                    (f"{attribute}[{k}]", runs[lengths.index(v)], True) for k, v in enumerate(value) if v in lengths
                ]
    return found


@cache
def _kept_by_torch(classes: tuple[type, ...]) -> frozenset[str]:
    """Attributes that a user's class, by its bases, has from a layer of torch: surgery keeps them true."""
    layers = [base for base in classes if base.__module__.startswith("torch.nn.") and base is not nn.Module]
    return frozenset().union(*(base.__dict__.get("__constants__", ()) for base in layers))


def _position(part: list[int], whole: list[int]) -> int | None:
    """Where ``part`` begins in ``whole``, of which it is a run."""
    return next((k for k in range(len(whole) - len(part) + 1) if whole[k : k + len(part)] == part), None)
