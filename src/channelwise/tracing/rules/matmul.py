"""Matrix products: contracted axes join, the others pass through."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from channelwise.inputs.tree import tensors_in
from channelwise.tracing.context import TraceContext
from channelwise.tracing.labels import LabelMap, along
from channelwise.tracing.rules.pointwise import join_elements
from channelwise.tracing.rules.registry import ATTENTION, operators, rule

aten = torch.ops.aten

_WIDTH = "attention heads have a fixed width"
_FIXED = "multiplied and summed over with a tensor of fixed size, such as the network's input"


def _product(ctx: TraceContext, out: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """(…, n, k) @ (…, k, m) -> (…, n, m); leading axes are batches."""
    left, right = ctx.flat_map(a, a.ndim - 1), ctx.flat_map(b, b.ndim - 2)
    ctx.contract(left, right, _FIXED)
    maps: list[LabelMap] = []
    for tensor, axis, place, read in ((a, a.ndim - 2, out.ndim - 2, left), (b, b.ndim - 1, out.ndim - 1, right)):
        produced = ctx.flat_map(tensor, axis)
        if produced is None:
            continue
        maps.append(along(produced.labels, place, out.ndim, produced.zero))
        if ctx.is_weight(tensor):
            ctx.space.mark_role(produced.labels, "output")
            if read is not None:
                ctx.space.mark_role(read.labels, "input")
    for batch in range(out.ndim - 2):
        both = [ctx.map_on(t, batch) for t in (a, b)]
        known = [m for m in both if m is not None]
        if len(known) == 1:
            ctx.freeze(known[0].labels, _FIXED)
        for m in known[:1]:
            if len(known) == 2:
                ctx.space.join(known[0].labels, known[1].labels)
                ctx.share(*known)
            maps.append(m.with_zero(any(k.zero for k in known)))
    ctx.set(out, maps, ctx.is_weight(a) and ctx.is_weight(b))


@rule(*operators(aten, "mm"))
def mm(ctx: TraceContext, out: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *args: Any, **kwargs: Any) -> None:
    """(n, k) @ (k, m) -> (n, m)."""
    _product(ctx, out, a, b)


@rule(*operators(aten, "bmm"))
def bmm(ctx: TraceContext, out: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *args: Any, **kwargs: Any) -> None:
    """(B, n, k) @ (B, k, m) -> (B, n, m)."""
    _product(ctx, out, a, b)


@rule(*operators(aten, "addmm", "baddbmm"))
def addmm(
    ctx: TraceContext,
    out: torch.Tensor,
    bias: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    *args: Any,
    **kwargs: Any,
) -> None:
    """bias + a @ b."""
    (mm if out.ndim == 2 else bmm)(ctx, out, a, b)
    product = ctx.maps(out)
    zeros = {m.axis: m.zero for m in product}
    bias_zeros = {m.axis + out.ndim - bias.ndim: m.zero for m in ctx.maps(bias)}
    joined = join_elements(ctx, [out, bias], out.ndim)
    if ctx.is_weight(bias):
        for m in ctx.maps(bias):
            ctx.space.mark_role(m.labels, "shift")
    ctx.set(out, [m.with_zero(zeros.get(m.axis, False) and bias_zeros.get(m.axis, False)) for m in joined])


@rule(*operators(aten, "mv"))
def mv(ctx: TraceContext, out: torch.Tensor, a: torch.Tensor, x: torch.Tensor, *args: Any, **kwargs: Any) -> None:
    """(n, k) @ (k,) -> (n,)."""
    ctx.contract(ctx.flat_map(a, 1), ctx.flat_map(x, 0), _FIXED)
    ctx.set(out, [m.moved(m.flat, 0) for m in [ctx.flat_map(a, 0)] if m], ctx.is_weight(a) and ctx.is_weight(x))


@rule(*operators(aten, "dot", "vdot"))
def dot(ctx: TraceContext, out: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """(k,) · (k,) -> ()."""
    ctx.contract(ctx.flat_map(a, 0), ctx.flat_map(b, 0), _FIXED)
    ctx.set(out, (), ctx.is_weight(a) and ctx.is_weight(b))


@rule(*ATTENTION)
def attention(
    ctx: TraceContext, out: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
) -> None:
    """softmax(q kᵀ s) v on (B, heads, L, E): whole heads go; one of keys and values with all query heads it serves.

    The width of heads stays: it is summed over, but the scale s depends on it if none is given.
    """
    masks = [t for t in [*tensors_in(args), *tensors_in(kwargs)] if ctx.maps(t)]
    for tensor in (query, key, value, *masks):
        ctx.freeze_axes(tensor, [d for d in range(tensor.ndim) if d != tensor.ndim - 3], _WIDTH)
    heads = [_heads(ctx, t, query.shape[-3]) for t in (query, key, value)]
    maps: list[LabelMap] = []
    known = [m for m in heads if m is not None]
    if known:
        for m in known[1:]:
            ctx.space.join(known[0].labels, m.labels)
        # A single head of keys and values serves all query heads, whichever stay.
        if any(m is None and t.shape[-3] > 1 for t, m in zip((query, key, value), heads, strict=True)):
            ctx.freeze(known[0].labels, _FIXED)
        given = [t for t in [*tensors_in(args), *tensors_in(kwargs)] if t.ndim >= 3 and t.shape[-3] > 1]
        for mask in given:
            mask_heads = ctx.map_on(mask, mask.ndim - 3)
            if mask_heads is None:
                ctx.freeze(known[0].labels, _FIXED)
            else:
                ctx.space.join(known[0].labels, mask_heads.flat)
        maps = [along(known[0].labels, query.ndim - 3, query.ndim, heads[2] is not None and heads[2].zero)]
    result, *rest = tensors_in(out)
    ctx.set(result, maps)
    for tensor in rest:
        # The logarithms of the sums, (B, heads, L).
        with_heads = maps and tensor.ndim == 3 and query.ndim == 4 and tensor.shape[1] == query.shape[1]
        ctx.set(tensor, [along(maps[0].flat, 1, 3, False)] if with_heads else ())


def _heads(ctx: TraceContext, tensor: torch.Tensor, number: int) -> LabelMap | None:
    """The labels (number,) of the heads; a head of keys or values that serves several query heads is repeated."""
    found = ctx.flat_map(tensor, tensor.ndim - 3)
    if found is None or found.labels.size == number:
        return found
    return LabelMap(np.repeat(found.labels, number // found.labels.size), 0, found.zero)
