"""Pooling, interpolation and padding of space: channels pass through, labelled spatial axes freeze."""

from __future__ import annotations

from typing import Any

import torch

from channelwise.inputs.tree import tensors_in
from channelwise.tracing.context import TraceContext
from channelwise.tracing.rules.pointwise import join_elements
from channelwise.tracing.rules.registry import Rule, operators, rule

aten = torch.ops.aten


def spatial(dimensions: int) -> Rule:
    """A rule for operators that mix the last ``dimensions`` axes, each channel by itself; zeros stay zeros."""

    def apply(ctx: TraceContext, out: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        space = range(x.ndim - dimensions, x.ndim)
        ctx.freeze_axes(x, space, "a labelled axis is pooled, resized or padded")
        ctx.freeze_all(tensors_in(args) + tensors_in(kwargs), "used as positions")
        for tensor in tensors_in(out):
            ctx.set(tensor, [m for m in ctx.maps(x) if m.axis not in space], ctx.is_weight(x))

    return apply


_ONE = ["avg_pool1d", "adaptive_avg_pool1d", "adaptive_max_pool1d", "max_pool1d", "max_pool1d_with_indices"]
_ONE += [
    "upsample_nearest1d",
    "_upsample_nearest_exact1d",
    "upsample_linear1d",
    "reflection_pad1d",
    "replication_pad1d",
]
_TWO = [
    "avg_pool2d",
    "adaptive_avg_pool2d",
    "_adaptive_avg_pool2d",
    "adaptive_max_pool2d",
    "max_pool2d",
    "max_pool2d_with_indices",
]
_TWO += [
    "fractional_max_pool2d",
    "mkldnn_max_pool2d",
    "upsample_nearest2d",
    "_upsample_nearest_exact2d",
    "upsample_bilinear2d",
]
_TWO += [
    "upsample_bicubic2d",
    "_upsample_bilinear2d_aa",
    "_upsample_bicubic2d_aa",
    "reflection_pad2d",
    "replication_pad2d",
]
_THREE = [
    "avg_pool3d",
    "adaptive_avg_pool3d",
    "_adaptive_avg_pool3d",
    "adaptive_max_pool3d",
    "max_pool3d",
    "max_pool3d_with_indices",
]
_THREE += [
    "fractional_max_pool3d",
    "mkldnn_max_pool3d",
    "upsample_nearest3d",
    "_upsample_nearest_exact3d",
    "upsample_trilinear3d",
]
_THREE += ["reflection_pad3d", "replication_pad3d"]

for _dimensions, _names in ((1, _ONE), (2, _TWO), (3, _THREE)):
    rule(*operators(aten, *_names))(spatial(_dimensions))


@rule(*operators(aten, "grid_sampler", "grid_sampler_2d", "grid_sampler_3d", "cudnn_grid_sampler"))
def grid_sampler(
    ctx: TraceContext, out: torch.Tensor, x: torch.Tensor, grid: torch.Tensor, *args: Any, **kwargs: Any
) -> None:
    """(N, C, H, W) sampled at (N, h, w, 2) -> (N, C, h, w)."""
    ctx.freeze_all([grid], "used as sampling positions")
    ctx.freeze_axes(x, range(2, x.ndim), "a labelled axis is sampled")
    ctx.set(out, [m for m in ctx.maps(x) if m.axis < 2])


@rule("torchvision::roi_align", "torchvision::roi_pool")
def roi_align(ctx: TraceContext, out: Any, x: torch.Tensor, boxes: torch.Tensor, *args: Any, **kwargs: Any) -> None:
    """(N, C, H, W) sampled in boxes (K, 5) -> (K, C, h, w)."""
    ctx.freeze_all([boxes], "used as sampling positions")
    ctx.freeze_axes(x, (0, 2, 3), "a labelled axis is sampled")
    for tensor in tensors_in(out)[:1]:
        ctx.set(tensor, [m for m in ctx.maps(x) if m.axis == 1])


@rule(*operators(aten, "max_unpool2d", "max_unpool3d"))
def max_unpool(
    ctx: TraceContext, out: torch.Tensor, x: torch.Tensor, indices: torch.Tensor, *args: Any, **kwargs: Any
) -> None:
    """(N, C, h, w) put back at the positions ``indices`` of the same shape -> (N, C, H, W)."""
    ctx.freeze_axes(x, range(2, x.ndim), "a labelled axis is unpooled")
    ctx.set(out, [m for m in join_elements(ctx, [x, indices], x.ndim) if m.axis < 2])
