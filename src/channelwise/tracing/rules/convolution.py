"""Convolutions of every kind: plain, grouped, depthwise, transposed, in one, two and three dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from channelwise.tracing.context import TraceContext
from channelwise.tracing.labels import LabelMap, along
from channelwise.tracing.rules.registry import operators, rule

aten = torch.ops.aten

_FIXED = "convolved with a tensor of fixed size, such as the network's input"


@rule(
    *operators(
        aten, "convolution", "_convolution", "cudnn_convolution", "convolution_overrideable", "mkldnn_convolution"
    )
)
def convolution(
    ctx: TraceContext,
    out: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    *args: bool,
) -> None:
    """x (N, C, …); weight (O, C/g, …), transposed (C, O/g, …); bias (O,)."""
    carried = [] if transposed else _carried(ctx, out, x, weight.shape[2:], stride)
    convolved = {m.axis for m in carried}
    ctx.freeze_axes(x, [a for a in range(2, x.ndim) if a not in convolved], "a labelled axis is convolved over")
    ctx.freeze_axes(weight, range(2, weight.ndim), "kernel positions stay")
    batch = [m for m in ctx.maps(x) if m.axis == 0]
    channels = x.shape[1]
    depthwise = groups > 1 and groups == channels
    if groups == 1:
        result = _plain(ctx, x, weight, transposed)
    elif depthwise:
        result = _depthwise(ctx, x, weight, transposed)
    else:
        result = _grouped(ctx, x, weight, transposed, groups)
    if groups > 1 and not isinstance(ctx.running, nn.modules.conv._ConvNd):
        m = ctx.map_on(x, 1)
        if m is not None:
            ctx.ask(m.labels, "a number of groups is passed to a convolution")
            if m.uniform:
                ctx.stands(groups, m.flat)
    maps = [along(result.flat, 1, out.ndim, _with_bias(ctx, result, bias))] if result is not None else []
    if result is None and bias is not None:
        ctx.freeze_all([bias], "added to channels of fixed number")
    maps += [m.with_zero(m.zero and bias is None) for m in [*batch, *carried]]
    ctx.set(out, maps)


def _carried(
    ctx: TraceContext, out: torch.Tensor, x: torch.Tensor, kernel: Sequence[int], stride: Sequence[int]
) -> list[LabelMap]:
    """Channels along an axis that the kernel moves over, as in efficient channel attention (arXiv:1910.03151).

    They keep their places if the axis keeps its length, whatever the length is. The channels that stay get new
    neighbours.
    """
    found = []
    for m in ctx.maps(x):
        place = m.axis - 2
        if place < 0 or not m.uniform or stride[place] != 1 or out.shape[m.axis] != x.shape[m.axis]:
            continue
        if kernel[place] > 1:
            ctx.inexact(m.labels, "convolved over, so that removed channels have neighbours")
        found.append(m.with_zero(m.zero and kernel[place] == 1))
    return found


def _with_bias(ctx: TraceContext, result: LabelMap, bias: torch.Tensor | None) -> bool:
    """Join the labels of the bias. Returns whether the output is zero where a channel was removed."""
    if bias is None:
        return result.zero
    labels = ctx.labels_on(bias, 0)
    if labels is None:
        if bias.numel() > 1:
            ctx.freeze(result.labels, "a constant is added as bias")
        return False
    ctx.space.join(result.flat, labels)
    ctx.space.mark_role(labels, "shift")
    return result.zero and ctx.map_on(bias, 0).zero  # type: ignore[union-attr]


def _plain(ctx: TraceContext, x: torch.Tensor, weight: torch.Tensor, transposed: bool) -> LabelMap | None:
    read, produced = (0, 1) if transposed else (1, 0)
    inputs, columns = ctx.flat_map(x, 1), ctx.flat_map(weight, read)
    ctx.contract(inputs, columns, _FIXED)
    rows = ctx.flat_map(weight, produced)
    _mark(ctx, columns, rows)
    return rows


def _depthwise(ctx: TraceContext, x: torch.Tensor, weight: torch.Tensor, transposed: bool) -> LabelMap | None:
    """Input channel c and its output channels c·m to c·m + m - 1 are one channel."""
    inputs = ctx.flat_map(x, 1)
    first, second = ctx.map_on(weight, 0), ctx.map_on(weight, 1)
    if inputs is None:
        for m in (first, second):
            if m is not None:
                ctx.freeze(m.labels, _FIXED)
        if first is not None:
            ctx.space.mark_role(first.labels, "output")
        return None
    rows = ctx.flat_map(weight, 0)
    if rows is None:
        ctx.freeze(inputs.labels, "convolved with a kernel of fixed size")
        return None
    if transposed:
        if second is not None:
            ctx.freeze(second.labels, "each input channel of a transposed depthwise convolution has several outputs")
        ctx.space.join(inputs.flat, rows.flat)
        labels = np.repeat(inputs.flat, weight.shape[1])
    else:
        multiplier = weight.shape[0] // x.shape[1]
        ctx.space.join(np.repeat(inputs.flat, multiplier), rows.flat)
        labels = rows.flat
    ctx.space.mark_role(rows.labels, "output")
    return LabelMap(labels, 0, inputs.zero or rows.zero)


def _grouped(
    ctx: TraceContext, x: torch.Tensor, weight: torch.Tensor, transposed: bool, groups: int
) -> LabelMap | None:
    """Each of the ``groups`` blocks keeps equally many inputs and equally many outputs, and chooses them itself."""
    inputs = ctx.flat_map(x, 1)
    rows, columns = ctx.flat_map(weight, 0), ctx.map_on(weight, 1)
    per_block = _columns_of_blocks(ctx, columns, weight, groups)
    read, produced = (rows, per_block) if transposed else (per_block, rows)
    for m in (inputs, rows):
        if m is not None:
            ctx.space.require_equal_parts(m.labels.reshape(groups, -1), ctx.because("parts of a grouped convolution"))
    if per_block is not None:
        ctx.space.require_equal_parts(
            per_block.labels.reshape(groups, -1), ctx.because("parts of a grouped convolution")
        )
    reads_one = (x.shape[1] // groups) == 1
    if inputs is None and read is not None:
        ctx.freeze(read.labels, _FIXED)
    elif inputs is not None and read is not None:
        ctx.contract(inputs, read, _FIXED)
    elif inputs is not None and not reads_one:
        ctx.freeze(inputs.labels, _FIXED)
    _mark(ctx, read, produced)
    return produced


def _columns_of_blocks(
    ctx: TraceContext, columns: LabelMap | None, weight: torch.Tensor, groups: int
) -> LabelMap | None:
    """Labels (g·n,) of the n columns of each block of rows."""
    if columns is None:
        return None
    n = weight.shape[1]
    labels = np.broadcast_to(columns.labels, (weight.shape[0], n, *columns.labels.shape[2:])).reshape(
        weight.shape[0], n, -1
    )[..., 0]
    if columns.uniform:
        return LabelMap(np.tile(columns.flat, groups), 0, columns.zero)
    per_block = labels.reshape(groups, -1, n)
    return LabelMap(ctx.space.tie(per_block, 1).reshape(-1), 0, columns.zero)


def _mark(ctx: TraceContext, read: LabelMap | None, produced: LabelMap | None) -> None:
    if read is not None:
        ctx.space.mark_role(read.labels, "input")
    if produced is not None:
        ctx.space.mark_role(produced.labels, "output")
