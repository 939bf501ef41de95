"""Reductions and softmax: over other axes channels pass through, over channels only a sum of zeros is exact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from channelwise.inputs.tree import tensors_in
from channelwise.tracing.context import TraceContext
from channelwise.tracing.labels import LabelMap
from channelwise.tracing.rules.registry import Rule, operators, rule

aten = torch.ops.aten


def reduction(*, exact_on_zeros: bool, keeps_zero: bool = True) -> Rule:
    """A rule for ``op(x, dim, keepdim)``.

    ``exact_on_zeros``: leaving out zeros does not change the result. ``keeps_zero``: zeros reduce to zero.
    """

    def apply(ctx: TraceContext, out: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        dims = _reduced(x, _argument("dim", args, kwargs))
        for tensor in tensors_in(out):
            keep = tensor.ndim == x.ndim and x.ndim > 0
            maps = []
            for m in ctx.maps(x):
                if m.axis in dims:
                    if tensor is tensors_in(out)[0] and not (exact_on_zeros and m.zero):
                        ctx.inexact(m.labels, "reduced over channels, counting those that were set to zero")
                else:
                    maps.append(_without(ctx, m, dims, keep).with_zero(m.zero and keeps_zero))
            ctx.set(tensor, maps, ctx.is_weight(x))

    return apply


def _argument(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The reduced dimensions: by keyword, or the first positional argument that is an int or a list of ints."""
    if name in kwargs:
        return kwargs[name]
    for value in args:
        if isinstance(value, (bool, float, torch.dtype)):
            continue
        if isinstance(value, (int, list, tuple)):
            return value
    return None


def _norm_dims(args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    return kwargs["dim"] if "dim" in kwargs else (args[1] if len(args) > 1 else None)


def _reduced(x: torch.Tensor, dim: Any) -> set[int]:
    if dim is None or (isinstance(dim, (list, tuple)) and not dim):
        return set(range(x.ndim))
    return {d % max(x.ndim, 1) for d in ([dim] if isinstance(dim, int) else dim)}


def _without(ctx: TraceContext, m: LabelMap, dims: set[int], keep: bool) -> LabelMap:
    labels = m.labels
    for d in dims:
        labels = ctx.space.tie(labels, d)
    if keep:
        return m.moved(labels, m.axis)
    return m.moved(np.squeeze(labels, tuple(dims)), m.axis - sum(d < m.axis for d in dims))


rule(*operators(aten, "sum", "nansum"))(reduction(exact_on_zeros=True))
rule(*operators(aten, "mean", "nanmean", "prod"))(reduction(exact_on_zeros=False))
rule(*operators(aten, "amax", "amin", "max", "min", "aminmax", "any", "median"))(reduction(exact_on_zeros=False))
rule(*operators(aten, "logsumexp", "all"))(reduction(exact_on_zeros=False, keeps_zero=False))


@rule(*operators(aten, "var", "std", "var_mean", "std_mean"))
def variance(ctx: TraceContext, out: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> None:
    """Unbiased, that of one value is 0 / 0."""
    dims = _reduced(x, _argument("dim", args, kwargs))
    biased = kwargs.get("correction") == 0 or not kwargs.get("unbiased", next((a for a in args if a is False), True))
    labelled = {m.axis for m in ctx.maps(x)}
    if not biased and all(x.shape[d] == 1 for d in dims - labelled):
        for m in ctx.maps(x):
            if m.axis in dims:
                ctx.space.keep_two(m, ctx.because("unbiased, the variance of one value is none"))
    reduction(exact_on_zeros=False)(ctx, out, x, *args, **kwargs)


@rule(*operators(aten, "linalg_vector_norm", "norm"))
def norm(ctx: TraceContext, out: torch.Tensor, x: torch.Tensor, *args: Any, **kwargs: Any) -> None:
    """‖x‖ over some axes: zeros do not count."""
    reduction(exact_on_zeros=True)(ctx, out, x, dim=_norm_dims(args, kwargs))


@rule(*operators(aten, "argmax", "argmin", "cumsum", "cumprod", "sort", "topk", "argsort", "logcumsumexp"))
def ordered(ctx: TraceContext, out: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> None:
    """Results that depend on positions: along other axes channels pass through where the shape is kept."""
    dim = _argument("dim", args[1:] if ctx.operation.startswith("aten.topk") else args, kwargs)
    if dim is None and ctx.operation.split(".")[1] in ("sort", "topk", "argsort"):
        dim = -1
    dims = _reduced(x, dim)
    ctx.freeze_axes(x, sorted(dims), "ordered or accumulated over channels")
    for tensor in tensors_in(out):
        if tensor.ndim == x.ndim:
            ctx.set(tensor, [m.with_zero(False) for m in ctx.maps(x) if m.axis not in dims])
        else:
            ctx.set(tensor, [_without(ctx, m, dims, False).with_zero(False) for m in ctx.maps(x) if m.axis not in dims])


@rule(*operators(aten, "_softmax", "_log_softmax", "softmax", "log_softmax", "_safe_softmax"))
def softmax(ctx: TraceContext, out: torch.Tensor, x: torch.Tensor, dim: int, *args: Any, **kwargs: Any) -> None:
    """Over an unlabelled axis channels pass through; over channels every one of them counts."""
    ctx.freeze_axes(x, [dim], "softmax over channels")
    ctx.set(out, [m.with_zero(False) for m in ctx.maps(x)])
