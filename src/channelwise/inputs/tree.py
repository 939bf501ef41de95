"""One walk over nested values: what arguments, batches and outputs hold, and the same values with other tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping, MutableSequence, Sequence, Set, ValuesView
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import nn

_WHOLE = (torch.Tensor, torch.Size, int, float, str, bytes, range, np.ndarray, np.generic, type, nn.Module)
"""Never looked into, although some of these can be iterated or have attributes."""

_PLAIN = {type(None), bool, int, float, str}

_SEQUENCES = (list, tuple, Sequence, Set, ValuesView)
_MAPPINGS = (dict, Mapping)
"""Plain types first: they are recognised much faster, and a trace looks into the arguments of every operator."""


def leaves(value: Any, attributes: bool = False) -> list[Any]:
    """What lists, tuples, sets and mappings hold, however deep, in order; a value of another type is one leaf.

    With ``attributes`` the leaves are what such values hold in their attributes, each container and object once, and
    iterators and functions.
    """
    found: list[Any] = []
    _visit(value, found, set() if attributes else None)
    return found


def tensors_in(value: Any, attributes: bool = False) -> list[torch.Tensor]:
    """The leaves that are tensors."""
    if type(value) in (tuple, list) and not attributes:
        # The arguments of an operator: most are tensors and numbers.
        found: list[torch.Tensor] = []
        for item in value:
            if isinstance(item, torch.Tensor):
                found.append(item)
            elif type(item) not in _PLAIN:
                found += tensors_in(item)
        return found
    return [leaf for leaf in leaves(value, attributes) if isinstance(leaf, torch.Tensor)]


def cannot_be_looked_into(value: Any) -> str | None:
    """The type of something in a value that may hold tensors which nobody finds: a generator, a function, a module."""
    closed = (v for v in leaves(value, attributes=True) if _is_closed(v) or isinstance(v, nn.Module))
    return next((type(v).__name__ for v in closed), None)


def _is_closed(value: Any) -> bool:
    if isinstance(value, FunctionType):
        return bool(value.__closure__ or tensors_in([value.__defaults__, value.__kwdefaults__]))
    return isinstance(value, Iterator) or (callable(value) and not isinstance(value, (*_WHOLE, BuiltinFunctionType)))


def output_values(output: Any) -> list[torch.Tensor]:
    """What can be compared of an output: its tensors and arrays, dense ones; where it has neither, its plain numbers.

    Numbers beside tensors count or time.
    """
    found: list[torch.Tensor] = []
    values = leaves(output, attributes=True)
    for leaf in values:
        if isinstance(leaf, torch.Tensor):
            found += leaf.unbind() if leaf.is_nested else [leaf if leaf.layout == torch.strided else leaf.to_dense()]
        elif isinstance(leaf, (np.ndarray, np.generic)) and leaf.dtype.kind in "bifc":
            found.append(torch.from_numpy(np.array(leaf)))
    return found or [torch.tensor(float(leaf)) for leaf in values if isinstance(leaf, (int, float))]


def mapped(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The value with ``change`` applied to the tensors in its lists, tuples and mappings.

    Lists and mappings are copied and keep their type. Tuples without a change stay as they are, and so do other values.
    """
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, tuple):
        items = [mapped(item, change) for item in value]
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        return getattr(value, "_make", type(value))(items)
    if isinstance(value, (MutableSequence, MutableMapping)):
        result = copy.copy(value)
        for key in range(len(value)) if isinstance(value, MutableSequence) else value:
            result[key] = mapped(value[key], change)
        return result
    if isinstance(value, Mapping):
        return type(value)({key: mapped(item, change) for key, item in value.items()})  # type: ignore[call-arg]
    return value


# No closure that calls itself: it would keep tensors alive until a garbage collection, which does not run in a trace.
def _visit(value: Any, found: list[Any], seen: set[int] | None) -> None:
    if isinstance(value, _WHOLE):
        found.append(value)
        return
    if seen is not None:
        if id(value) in seen:
            return
        seen.add(id(value))
    if isinstance(value, _SEQUENCES):
        for item in value:
            _visit(item, found, seen)
    elif isinstance(value, _MAPPINGS):
        for item in value.values():
            _visit(item, found, seen)
    elif seen is None or _is_closed(value):
        found.append(value)
    if seen is not None:
        slots = [name for cls in type(value).__mro__ for name in cls.__dict__.get("__slots__", ())]
        for name in [*getattr(value, "__dict__", ()), *slots]:
            _visit(getattr(value, name, None), found, seen)
