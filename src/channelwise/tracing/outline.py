"""Zeros in place of what costly operators would compute: enough where only shapes and labels matter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from channelwise.inputs.tree import mapped
from channelwise.tracing.rules.registry import ATTENTION

aten = torch.ops.aten

HEAVY = {
    operator.default
    for operator in (aten.convolution, aten.mm, aten.addmm, aten.bmm, aten.baddbmm, *ATTENTION)
    if operator is not None
}
"""Operators that take most of a network's time."""


def zeros_instead(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Zeros of the shapes, types and memory formats that the operator would return, by its kernel for meta tensors."""
    out = func(*map(_without_values, args), **{name: _without_values(value) for name, value in kwargs.items()})
    device = args[0].device
    # Quicker than zeros_like, which takes another way for tensors without values.
    return mapped(out, lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=device).zero_())


def _without_values(value: Any) -> Any:
    return value.to("meta") if isinstance(value, torch.Tensor) else value
