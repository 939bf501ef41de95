"""Zeros in place of what costly operators would compute: enough where only shapes and labels matter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def _convolution_shape(
    x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, *rest: Any
) -> list[int]:
    transposed, output_padding, groups = rest[:3]
    shape = [x.shape[0], weight.shape[1] * groups if transposed else weight.shape[0]]
    for d, n in enumerate(x.shape[2:]):
        step, border = stride[d % len(stride)], padding[d % len(padding)]
        reach = dilation[d % len(dilation)] * (weight.shape[d + 2] - 1)
        if transposed:
            shape.append((n - 1) * step - 2 * border + reach + output_padding[d % len(output_padding)] + 1)
        else:
            shape.append((n + 2 * border - reach - 1) // step + 1)
    return shape


HEAVY: dict[Any, Callable[..., list[int]]] = {
    torch.ops.aten.convolution.default: _convolution_shape,
    torch.ops.aten.mm.default: lambda a, b: [a.shape[0], b.shape[1]],
    torch.ops.aten.addmm.default: lambda bias, a, b: [a.shape[0], b.shape[1]],
    torch.ops.aten.bmm.default: lambda a, b: [a.shape[0], a.shape[1], b.shape[2]],
}
"""Operators that take most of a network's time, and the shape of their result."""


def zeros_instead(func: Any, args: Any) -> torch.Tensor:
    """Zeros of the shape, type and memory format that the operator would return."""
    first = args[0]
    out = torch.zeros(HEAVY[func](*args), dtype=first.dtype, device=first.device)
    if first.ndim == 4 and not first.is_contiguous() and first.is_contiguous(memory_format=torch.channels_last):
        out = out.contiguous(memory_format=torch.channels_last)
    return out
