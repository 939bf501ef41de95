"""What a network returned: its tensors, and all values in it that can be compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn


def output_tensors(output: Any) -> list[torch.Tensor]:
    """All tensors in what a model returned: in containers and in the attributes of objects, however deep."""
    found: list[torch.Tensor] = []
    _visit(output, lambda leaf: found.append(leaf) if isinstance(leaf, torch.Tensor) else None, set())
    return found


def output_values(output: Any) -> list[torch.Tensor]:
    """These tensors and arrays, dense ones; where there are none, plain numbers: beside others they count or time."""
    leaves: list[Any] = []
    _visit(output, leaves.append, set())
    found: list[torch.Tensor] = []
    for leaf in leaves:
        if isinstance(leaf, torch.Tensor):
            found += leaf.unbind() if leaf.is_nested else [leaf if leaf.layout == torch.strided else leaf.to_dense()]
        elif isinstance(leaf, (np.ndarray, np.generic)) and leaf.dtype.kind in "bifc":
            found.append(torch.from_numpy(np.array(leaf)))
    if found:
        return found
    return [torch.tensor(float(leaf)) for leaf in leaves if isinstance(leaf, (int, float))]


# A function of its own: one that closes over its results keeps tensors alive, and there is no garbage collection.
def _visit(value: Any, note: Callable[[Any], None], seen: set[int]) -> None:
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic, int, float)):
        note(value)
        return
    if id(value) in seen or isinstance(value, (str, bytes, type, nn.Module)):
        return
    seen.add(id(value))
    if isinstance(value, Mapping):
        for item in value.values():
            _visit(item, note, seen)
    elif isinstance(value, (Sequence, set, frozenset)):
        for item in value:
            _visit(item, note, seen)
    for name in [*getattr(value, "__dict__", ()), *getattr(type(value), "__slots__", ())]:
        _visit(getattr(value, name, None), note, seen)
