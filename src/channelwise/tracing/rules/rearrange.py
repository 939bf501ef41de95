"""Views and copies that permute, repeat or join whole axes: the same operation on the label maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from channelwise.tracing.context import TraceContext
from channelwise.tracing.labels import LABEL, LabelMap, along
from channelwise.tracing.rules.registry import operators, rule

aten = torch.ops.aten


@rule(*operators(aten, "permute"))
def permute(ctx: TraceContext, out: torch.Tensor, x: torch.Tensor, dims: Sequence[int]) -> None:
    """Axes in another order."""
    order = [d % x.ndim for d in dims]
    ctx.set(out, [m.moved(m.labels.transpose(order), order.index(m.axis)) for m in ctx.maps(x)], ctx.is_weight(x))


@rule(*operators(aten, "transpose", "swapaxes", "transpose_"))
def transpose(ctx: TraceContext, out: torch.Tensor, x: torch.Tensor, dim0: int, dim1: int) -> None:
    """Two axes swapped."""
    order = list(range(out.ndim))
    if order:
        a, b = dim0 % out.ndim, dim1 % out.ndim
        order[a], order[b] = b, a
        permute(ctx, out, x, order)


@rule(*operators(aten, "t", "numpy_T"))
def t(ctx: TraceContext, out: torch.Tensor, x: torch.Tensor) -> None:
    """Axes reversed."""
    permute(ctx, out, x, range(x.ndim)[::-1])


@rule(*operators(aten, "unsqueeze", "unsqueeze_"))
def unsqueeze(ctx: TraceContext, out: torch.Tensor, x: torch.Tensor, dim: int) -> None:
    """A new axis of length 1."""
    at = dim % out.ndim
    maps = [m.moved(np.expand_dims(m.labels, at), m.axis + (m.axis >= at)) for m in ctx.maps(x)]
    ctx.set(out, maps, ctx.is_weight(x))


@rule(*operators(aten, "squeeze", "squeeze_"))
def squeeze(ctx: TraceContext, out: torch.Tensor, x: torch.Tensor, dim: int | Sequence[int] | None = None) -> None:
    """Axes of length 1 dropped. They carry no labels; a labelled axis keeps two channels, or it would be dropped."""
    wanted = (
        range(x.ndim)
        if dim is None
        else [d % x.ndim for d in ([dim] if isinstance(dim, int) else dim)]
        if x.ndim
        else []
    )
    gone = [d for d in wanted if x.shape[d] == 1]
    for m in ctx.maps(x):
        if m.axis in wanted:
            ctx.space.keep_two(m, ctx.because("an axis of length 1 would be dropped"))
    maps = [m.moved(np.squeeze(m.labels, tuple(gone)), m.axis - sum(g < m.axis for g in gone)) for m in ctx.maps(x)]
    ctx.set(out, maps, ctx.is_weight(x))


@rule(*operators(aten, "expand", "broadcast_to"))
def expand(
    ctx: TraceContext, out: torch.Tensor, x: torch.Tensor, size: Sequence[int], *, implicit: bool = False
) -> None:
    """Axes of length 1 repeated without copying. A length given for a labelled axis may be a constant."""
    extra = out.ndim - x.ndim
    maps = [m.moved(m.labels.reshape((1,) * extra + m.labels.shape), m.axis + extra) for m in ctx.maps(x)]
    for m in maps:
        if size[m.axis] != -1:
            ctx.ask(m.labels, f"expanded to {tuple(size)}")
            if m.uniform:
                ctx.stands(out.shape[m.axis], m.flat, m.axis)
    for axis, length in enumerate(out.shape):
        repeated = length > 1 and (axis < extra or x.shape[axis - extra] == 1)
        if repeated and (ctx.call.adapts or length == ctx.call.repeats or ctx.is_named(axis, length)):
            # What is the same for all heads goes with them. It has its own labels until it meets those of the heads.
            labels = ctx.repeat(length)
            ctx.ask(labels, f"expanded to {tuple(size)}")
            ctx.stands(length, labels, axis)
            maps.append(along(labels, axis, out.ndim, False))
    ctx.set(out, maps, ctx.is_weight(x))


@rule(*operators(aten, "repeat", "tile"))
def repeat(ctx: TraceContext, out: torch.Tensor, x: torch.Tensor, repeats: Sequence[int]) -> None:
    """The tensor laid side by side; a repeated channel has one label in several places."""
    extra = out.ndim - x.ndim
    maps = []
    for m in ctx.maps(x):
        labels = m.labels.reshape((1,) * extra + m.labels.shape)
        tiles = [r if d == m.axis + extra or labels.shape[d] > 1 else 1 for d, r in enumerate(repeats)]
        maps.append(m.moved(np.tile(labels, tiles), m.axis + extra))
    ctx.set(out, maps, ctx.is_weight(x))


@rule(*operators(aten, "flip"))
def flip(ctx: TraceContext, out: torch.Tensor, x: torch.Tensor, dims: Sequence[int]) -> None:
    """Axes reversed in place of order."""
    axes = tuple(d % x.ndim for d in dims)
    ctx.set(out, [m.moved(np.flip(m.labels, axes), m.axis) for m in ctx.maps(x)], ctx.is_weight(x))


@rule(*operators(aten, "rot90"))
def rot90(ctx: TraceContext, out: torch.Tensor, x: torch.Tensor, k: int = 1, dims: Sequence[int] = (0, 1)) -> None:
    """A plane of two axes turned by ``k`` quarter turns."""
    a, b = (d % x.ndim for d in dims)
    turned = {a: b, b: a} if k % 2 else {}
    maps = [m.moved(np.rot90(m.labels, k, (a, b)), turned.get(m.axis, m.axis)) for m in ctx.maps(x)]
    ctx.set(out, maps, ctx.is_weight(x))


@rule(*operators(aten, "roll"))
def roll(
    ctx: TraceContext, out: torch.Tensor, x: torch.Tensor, shifts: Sequence[int], dims: Sequence[int] = ()
) -> None:
    """Axes rotated; along a labelled axis the distance depends on how many channels there are."""
    maps = []
    for m in ctx.maps(x):
        shift = sum(s for s, d in zip(shifts, dims, strict=False) if d % x.ndim == m.axis)
        if not dims or shift % m.labels.shape[m.axis]:
            ctx.freeze(m.labels, "channels are rotated by a constant distance")
        maps.append(m.moved(np.roll(m.labels, shift, m.axis), m.axis))
    ctx.set(out, maps if dims else (), ctx.is_weight(x))


@rule(*operators(aten, "cat", "concat", "concatenate"))
def cat(ctx: TraceContext, out: torch.Tensor, tensors: Sequence[torch.Tensor], dim: int = 0) -> None:
    """Tensors one after another along ``dim``."""
    tensors = [t for t in tensors if t.ndim == out.ndim]
    dim %= out.ndim
    maps = _across(ctx, tensors, {d: d for d in range(out.ndim) if d != dim}, out.ndim)
    pieces = [(t, ctx.map_on(t, dim)) for t in tensors]
    if any(m is not None for _, m in pieces):
        filler = ctx.space.frozen_label(
            ctx.because("concatenated with channels of a constant or of the network's input")
        )
        labels = [
            np.full(t.shape[dim], filler, LABEL) if m is None else ctx.one_axis(m) for t, m in pieces if t.shape[dim]
        ]
        zero = all(m.zero for _, m in pieces if m is not None)
        maps.append(along(np.concatenate(labels), dim, out.ndim, zero))
    ctx.set(out, maps, bool(tensors) and all(ctx.is_weight(t) for t in tensors))


@rule(*operators(aten, "stack"))
def stack(ctx: TraceContext, out: torch.Tensor, tensors: Sequence[torch.Tensor], dim: int = 0) -> None:
    """Tensors of equal shape along a new axis: the same index of all of them goes together."""
    at = dim % out.ndim
    maps = _across(ctx, tensors, {d: d + (d >= at) for d in range(out.ndim - 1)}, out.ndim)
    ctx.set(out, maps, bool(tensors) and all(ctx.is_weight(t) for t in tensors))


def _across(ctx: TraceContext, tensors: Sequence[torch.Tensor], axes: dict[int, int], ndim: int) -> list[LabelMap]:
    """Join the maps of several tensors along axes on which they must agree; ``axes`` maps old to new positions."""
    maps = []
    for old, new in axes.items():
        found = [(t, ctx.map_on(t, old)) for t in tensors]
        labelled = [m for _, m in found if m is not None]
        if not labelled:
            continue
        first = ctx.one_axis(labelled[0])
        for m in labelled[1:]:
            ctx.space.join(first, ctx.one_axis(m))
        if len(labelled) < len(found):
            ctx.freeze(
                first, "joined with a tensor of fixed size, such as a constant or the network's input, along this axis"
            )
        maps.append(along(first, new, ndim, all(m.zero for m in labelled)))
    return maps


@rule(*operators(aten, "pixel_shuffle"))
def pixel_shuffle(ctx: TraceContext, out: torch.Tensor, x: torch.Tensor, upscale_factor: int) -> None:
    """(…, C r r, H, W) -> (…, C, H r, W r): r² neighbouring channels become one."""
    _merge_runs(ctx, out, x, x.ndim - 3, upscale_factor**2)


@rule(*operators(aten, "pixel_unshuffle"))
def pixel_unshuffle(ctx: TraceContext, out: torch.Tensor, x: torch.Tensor, downscale_factor: int) -> None:
    """(…, C, H r, W r) -> (…, C r r, H, W): every channel becomes r² neighbouring ones."""
    _repeat_runs(ctx, out, x, x.ndim - 3, downscale_factor**2)


@rule(*operators(aten, "im2col"))
def im2col(
    ctx: TraceContext, out: torch.Tensor, x: torch.Tensor, kernel_size: Sequence[int], *args: Any, **kwargs: Any
) -> None:
    """(…, C, H, W) -> (…, C kh kw, L): every channel becomes kh·kw neighbouring ones."""
    _repeat_runs(ctx, out, x, x.ndim - 3, int(np.prod(kernel_size)))


@rule(*operators(aten, "col2im"))
def col2im(
    ctx: TraceContext,
    out: torch.Tensor,
    x: torch.Tensor,
    output_size: Sequence[int],
    kernel_size: Sequence[int],
    *args: Any,
    **kwargs: Any,
) -> None:
    """(…, C kh kw, L) -> (…, C, H, W): kh·kw neighbouring channels are summed up in one."""
    _merge_runs(ctx, out, x, x.ndim - 2, int(np.prod(kernel_size)))


def _merge_runs(ctx: TraceContext, out: torch.Tensor, x: torch.Tensor, axis: int, run: int) -> None:
    labels = ctx.labels_on(x, axis)
    maps = _maps_before(ctx, out, x, axis)
    if labels is not None:
        zero = ctx.map_on(x, axis).zero  # type: ignore[union-attr]
        maps.append(along(ctx.space.tie(labels.reshape(-1, run), 1).reshape(-1), axis, out.ndim, zero))
    ctx.set(out, maps)


def _repeat_runs(ctx: TraceContext, out: torch.Tensor, x: torch.Tensor, axis: int, run: int) -> None:
    labels = ctx.labels_on(x, axis)
    maps = _maps_before(ctx, out, x, axis)
    if labels is not None:
        zero = ctx.map_on(x, axis).zero  # type: ignore[union-attr]
        maps.append(along(np.repeat(labels, run), axis, out.ndim, zero))
    ctx.set(out, maps)


def _maps_before(ctx: TraceContext, out: torch.Tensor, x: torch.Tensor, axis: int) -> list[LabelMap]:
    """The maps of the axes before the channels, which stay as they are. Spatial axes behind must have no labels."""
    ctx.freeze_axes(x, range(axis + 1, x.ndim), "the spatial axes of this operation are labelled")
    return [along(ctx.one_axis(m), m.axis, out.ndim, m.zero) for m in ctx.maps(x) if m.axis < axis]


@rule(*operators(aten, "native_channel_shuffle", "channel_shuffle"))
def channel_shuffle(ctx: TraceContext, out: torch.Tensor, x: torch.Tensor, groups: int) -> None:
    """(N, g·c, …) -> (N, c·g, …): the same index of all g parts goes together."""
    labels = ctx.labels_on(x, 1)
    maps = [m for m in ctx.maps(x) if m.axis != 1]
    if labels is not None:
        parts = labels.reshape(groups, -1)
        ctx.space.tie(parts, 0)
        maps.append(along(parts.T.reshape(-1), 1, out.ndim, ctx.map_on(x, 1).zero))  # type: ignore[union-attr]
    ctx.set(out, maps)
