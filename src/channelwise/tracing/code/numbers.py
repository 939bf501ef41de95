"""Whole numbers that modules keep, by the paths of `provenance`: reading them, and new values for them.

``width`` is an attribute, ``sizes[1]`` an element of the tuple or list in ``sizes``, ``config.heads`` an attribute of
the object in ``config``, ``options['width']`` an item of a dict.
"""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from torch import nn

_STEP = re.compile(r"\.(\w+)|\[(-?\d+|'[^']*'|\"[^\"]*\")\]")
Step = tuple[bool, Any]
"""Whether this is an attribute (else an item), and its name, index or key."""


@cache
def _steps(path: str) -> tuple[Step, ...]:
    """The parts of a path; none if it is not one."""
    whole = f".{path}"
    found = list(_STEP.finditer(whole))
    if "".join(step[0] for step in found) != whole:
        return ()
    try:
        return tuple((True, step[1]) if step[1] else (False, ast.literal_eval(step[2])) for step in found)
    except (SyntaxError, ValueError):
        return ()


def attribute_of(number: str) -> str:
    """The attribute that a number is, or is in."""
    steps = _steps(number)
    return steps[0][1] if steps else number


def number_of(module: nn.Module, number: str) -> int | None:
    """The value of a number; None if the module has no such number."""
    value: Any = module
    for is_attribute, key in _steps(number):
        try:
            value = vars(value)[key] if is_attribute else value[key]
        except (KeyError, IndexError, TypeError):
            return None
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else None


def with_numbers(attributes: Mapping[str, Any], numbers: Mapping[str, int]) -> dict[str, Any]:
    """The attributes that change, with new values; what numbers are in (tuples, lists, objects) is copied."""
    changed: dict[str, Any] = {}
    for number, value in numbers.items():
        (_, name), *rest = _steps(number)
        changed[name] = _with(changed.get(name, attributes.get(name)), rest, value)
    return changed


def _with(old: Any, steps: list[Step], value: int) -> Any:
    if not steps:
        return value
    (is_attribute, key), *rest = steps
    if type(old) is tuple:
        return tuple(_with(item, rest, value) if k == key else item for k, item in enumerate(old))
    new = copy.copy(old)
    if is_attribute:
        new.__dict__[key] = _with(old.__dict__[key], rest, value)
    else:
        new[key] = _with(old[key], rest, value)
    return new
