"""Element-wise operations: labels that meet are joined; trying the operation on zeros follows removed values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from channelwise.inputs.tree import tensors_in
from channelwise.tracing.context import TraceContext
from channelwise.tracing.labels import LabelMap
from channelwise.tracing.rules.registry import operators, rule

aten = torch.ops.aten


_UNTAGGED = {
    "hardswish",
    "_prelu_kernel",
    "log_sigmoid_forward",
    "copy_",
    "celu",
    "leaky_relu",
    "hardtanh",
    "hardsigmoid",
    "elu",
    "softplus",
    "threshold",
    "selu",
    "_fake_quantize_learnable_per_tensor_affine",
}
"""Element-wise operators that some versions of torch do not tag as such."""


def is_pointwise(func: Any) -> bool:
    """Whether torch itself says that the operator works element by element."""
    if torch.Tag.pointwise in func.tags:
        return True
    name = func.overloadpacket._qualified_op_name.split("::")[1]
    if func.namespace == "aten" and (name in _UNTAGGED or name.removesuffix("_") in _UNTAGGED):
        return True
    base = getattr(aten, name.rstrip("_"), None) if func.namespace == "aten" else None
    if base is None or (not name.endswith("_") and func._overloadname != "out"):
        return False
    return any(torch.Tag.pointwise in getattr(base, o).tags for o in base.overloads())


def pointwise(ctx: TraceContext, out: Any, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    """Any element-wise operator, with broadcasting, in place or not."""
    tensors = tensors_in(args) + tensors_in(kwargs)
    outs = tensors_in(out)
    if not outs:
        return
    maps = join_elements(ctx, tensors, outs[0].ndim)
    results = []
    for m in maps:
        zero, finite = _removed_value(ctx, func, args, kwargs, m, outs[0].ndim)
        if not finite:
            ctx.inexact(m.labels, "not finite where a channel was set to zero")
        results.append(m.with_zero(zero))
    finish(ctx, func, tensors, outs, results)


def finish(
    ctx: TraceContext, func: Any, inputs: list[torch.Tensor], outs: list[torch.Tensor], maps: list[LabelMap]
) -> None:
    """Give the results their maps; in place, remember where removed values stop being zero."""
    weight = any(ctx.is_weight(t) for t in inputs) and all(ctx.is_weight(t) or not ctx.knows(t) for t in inputs)
    for tensor in outs:
        if any(tensor is t for t in inputs) and any(not m.zero for m in maps):
            ctx.forget_zero(tensor)
        ctx.set(tensor, maps if tensor.shape == outs[0].shape else (), weight)


def join_elements(ctx: TraceContext, tensors: Sequence[torch.Tensor], ndim: int) -> list[LabelMap]:
    """Join the labels of tensors that are broadcast against each other; the maps of the result (one per axis)."""
    entries = [(t, _aligned(ctx, t, ndim), (1,) * (ndim - t.ndim) + tuple(t.shape)) for t in tensors if t.ndim <= ndim]
    for tensor in tensors:
        if tensor.ndim > ndim:
            ctx.freeze_all([tensor], "shapes do not broadcast as expected")
    for i, (_, maps, _) in enumerate(entries):
        for j, (other, others, shape) in enumerate(entries):
            if i == j:
                continue
            for m in maps:
                if shape[m.axis] == 1:
                    continue
                partners = [o for o in others if o.axis == m.axis]
                if not partners and (ctx.is_fresh(other) or other.stride(m.axis - ndim) == 0):
                    ctx.ask(m.labels, "meets a tensor that was made or expanded to this size")
                    ctx.meets_fresh(other, m.flat)
                elif not partners:
                    ctx.freeze(
                        m.labels,
                        "meets a tensor of fixed size, such as a constant or the network's input, along this axis",
                    )
                elif j > i:
                    for partner in partners:
                        ctx.space.join(m.labels, partner.labels)
    merged: dict[int, LabelMap] = {}
    for _, maps, _ in entries:
        for m in maps:
            seen = merged.get(m.axis)
            if seen is None or (seen.uniform and not m.uniform):
                merged[m.axis] = m
            elif seen.labels is not m.labels:
                ctx.space.join(seen.labels, m.labels)
    return list(merged.values())


def _aligned(ctx: TraceContext, tensor: torch.Tensor, ndim: int) -> list[LabelMap]:
    extra = ndim - tensor.ndim
    maps = ctx.maps(tensor)
    if not extra:
        return list(maps)
    return [m.moved(m.labels.reshape((1,) * extra + m.labels.shape), m.axis + extra) for m in maps]


def _removed_value(
    ctx: TraceContext, func: Any, args: Sequence[Any], kwargs: dict[str, Any], m: LabelMap, ndim: int
) -> tuple[bool, bool]:
    """Try the operator on numbers. Returns whether the result is zero, and finite, where a channel was set to zero."""
    pattern: list[bool] = []
    plain_args = _without_tensors(ctx, tuple(args), m.axis - ndim, pattern)
    plain_kwargs = tuple((k, _without_tensors(ctx, v, m.axis - ndim, pattern)) for k, v in kwargs.items())
    try:
        return _try_on_numbers(func, plain_args, plain_kwargs, tuple(pattern))
    except TypeError:
        return _try_on_numbers.__wrapped__(func, plain_args, plain_kwargs, tuple(pattern))


def _without_tensors(ctx: TraceContext, value: Any, axis: int, pattern: list[bool]) -> Any:
    """The arguments with slots for tensors. ``pattern`` gets whether each is zero where a channel along ``axis`` is."""
    if isinstance(value, torch.Tensor):
        here = [k for k in ctx.maps(value) if k.axis - value.ndim == axis]
        pattern.append(bool(here) and all(k.zero for k in here))
        return _Slot(len(pattern) - 1, value.dtype)
    if isinstance(value, (list, tuple)):
        return tuple(_without_tensors(ctx, v, axis, pattern) for v in value)
    return value


class _Slot:
    """Stands for a tensor argument in a cached question about numbers."""

    def __init__(self, index: int, dtype: torch.dtype) -> None:
        self.index, self.dtype = index, dtype

    def __hash__(self) -> int:
        return hash((self.index, self.dtype))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Slot) and (self.index, self.dtype) == (other.index, other.dtype)


@lru_cache(maxsize=4096)
def _try_on_numbers(func: Any, args: Any, kwargs: Any, pattern: tuple[bool, ...]) -> tuple[bool, bool]:
    zero = finite = True
    for probe in (0.8125, 1.75):
        result = func(
            *[_filled(a, pattern, probe) for a in args],
            **{k: _filled(v, pattern, probe) for k, v in kwargs if k != "device"},
        )
        for value in tensors_in(result):
            number = float(value) if not value.is_complex() else abs(complex(value))
            zero &= number == 0.0
            finite &= math.isfinite(number)
    return zero, finite


def _filled(value: Any, pattern: Sequence[bool], probe: float) -> Any:
    """A number for every slot: zero where the pattern says so."""
    if isinstance(value, _Slot):
        number = 0.0 if pattern[value.index] else probe + 0.03125 * value.index
        dtype = torch.float64 if value.dtype.is_floating_point else value.dtype
        return torch.tensor(number, dtype=dtype)
    if isinstance(value, tuple):
        return [_filled(v, pattern, probe) for v in value]
    return value


@rule(
    *operators(
        aten,
        "clone",
        "detach",
        "alias",
        "_to_copy",
        "lift_fresh",
        "lift_fresh_copy",
        "contiguous",
        "view_as",
        "dropout",
        "_conj",
    )
)
def same(ctx: TraceContext, out: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> None:
    """(…) -> (…): the same values, perhaps of another type or on another device."""
    if out is not x:
        ctx.set(out, ctx.maps(x), ctx.is_weight(x))


@rule(*operators(aten, "native_dropout", "_fused_dropout", "feature_dropout", "alpha_dropout"))
def random_same(ctx: TraceContext, out: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> None:
    """(…) -> (…): values are dropped or scaled at random; a removed channel stays zero."""
    for tensor in tensors_in(out):
        ctx.set(tensor, ctx.maps(x))


@rule(
    *operators(
        aten,
        "zeros_like",
        "ones_like",
        "empty_like",
        "full_like",
        "rand_like",
        "randn_like",
        "randint_like",
        "bernoulli",
        "rrelu_with_noise",
    )
)
def filled_like(ctx: TraceContext, out: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> None:
    """(…) -> (…): a new tensor that takes its shape from ``x``."""
    zero = ctx.operation.startswith("aten.zeros_like")
    for tensor in tensors_in(out):
        ctx.set(tensor, [m.with_zero(zero) for m in ctx.maps(x)])


@rule(*operators(aten, "new_zeros", "new_ones", "new_empty", "new_full", "new_empty_strided"))
def new_filled(
    ctx: TraceContext, out: torch.Tensor, x: torch.Tensor, size: Sequence[int], *args: Any, **kwargs: Any
) -> None:
    """A new tensor whose shape may have been read from ``x``: verification finds out."""
    if len(size) != x.ndim:
        return
    zero = ctx.operation.startswith("aten.new_zeros")
    maps = [m.with_zero(zero) for m in ctx.maps(x) if size[m.axis] == x.shape[m.axis]]
    for m in maps:
        ctx.ask(m.labels, "a new tensor of this size is made")
    ctx.set(out, maps)


@rule(*operators(aten, "bernoulli_", "uniform_", "normal_", "fill_", "random_", "exponential_", "zero_"))
def overwrite(ctx: TraceContext, out: torch.Tensor, x: torch.Tensor, *args: Any, **kwargs: Any) -> None:
    """All elements are overwritten in place by the same kind of value."""
    zero = ctx.operation.startswith("aten.zero_")
    if not zero:
        ctx.forget_zero(x)
    ctx.freeze_all(tensors_in(args), "used as a fill value")


@rule(*operators(aten, "glu"))
def glu(ctx: TraceContext, out: torch.Tensor, x: torch.Tensor, dim: int = -1) -> None:
    """(…, 2C, …) -> (…, C, …): both halves of channel c go together."""
    dim %= x.ndim
    maps = []
    for m in ctx.maps(x):
        if m.axis == dim:
            first, second = np.split(m.labels, 2, dim)
            ctx.space.join(first, second)
            maps.append(LabelMap(first, dim, m.zero))
        else:
            maps.append(m)
    ctx.set(out, maps, ctx.is_weight(x))
