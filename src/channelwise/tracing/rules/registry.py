"""The registry that finds the label rule of an ATen operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload, OpOverloadPacket

Rule = Callable[..., None]
"""``rule(ctx, out, *args, **kwargs)``: arguments as in the operator's schema, ``out`` what the operator returned."""

_RULES: dict[Any, Rule] = {}


def rule(*operators: OpOverload | OpOverloadPacket | str | None) -> Callable[[Rule], Rule]:
    """Register the decorated function for these operators (None: not in this version of torch).

    Those of other libraries, which may be loaded later or not at all, go by name: ``"torchvision::roi_align"``.
    """

    def register(function: Rule) -> Rule:
        for operator in operators:
            if operator is not None:
                _RULES[operator] = function
        return function

    return register


def find(operator: OpOverload) -> Rule | None:
    """The rule of an overload, or of all overloads of its name."""
    return _RULES.get(operator) or _RULES.get(operator.overloadpacket) or _RULES.get(operator._schema.name)


def operators(namespace: Any, *names: str) -> list[OpOverloadPacket | None]:
    """Operators by name; None for those that this version of torch does not have."""
    return [getattr(namespace, name, None) for name in names]


ATTENTION = operators(
    torch.ops.aten,
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)
"""The kernels of scaled dot product attention."""
