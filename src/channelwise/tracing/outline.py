"""Zeros in place of what costly operators would compute: enough where only shapes and labels matter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

aten = torch.ops.aten

HEAVY = {
    operator.default
    for operator in (
        aten.convolution, aten.mm, aten.addmm, aten.bmm, aten.baddbmm,
        aten._scaled_dot_product_flash_attention_for_cpu, aten._scaled_dot_product_flash_attention,
        aten._scaled_dot_product_efficient_attention, aten._scaled_dot_product_cudnn_attention,
    )
}  # fmt: skip
"""Operators that take most of a network's time."""


def zeros_instead(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Zeros of the shapes, types and memory formats that the operator would return, by its kernel for meta tensors."""
    device = args[0].device
    without = tree_map_only(torch.Tensor, lambda t: t.to("meta"), (tuple(args), dict(kwargs)))
    out = func(*without[0], **without[1])
    return tree_map_only(torch.Tensor, lambda t: torch.zeros_like(t, device=device), out)
