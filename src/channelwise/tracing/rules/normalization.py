"""Normalisation layers: per-channel tensors join the channels; statistics over several channels make groups inexact."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from channelwise.inputs.tree import tensors_in
from channelwise.structure import Role
from channelwise.tracing.context import TraceContext
from channelwise.tracing.labels import LabelMap, TwoStay
from channelwise.tracing.rules.registry import operators, rule

aten = torch.ops.aten

_FIXED = "normalised by a tensor of fixed size"


def _join_per_channel(
    ctx: TraceContext,
    m: LabelMap,
    tensors: Sequence[torch.Tensor | None],
    axis: int = 0,
    roles: Sequence[Role] = ("scale", "shift"),
) -> None:
    for k, tensor in enumerate(tensors):
        if tensor is None or tensor.numel() <= 1:
            continue
        labels = ctx.labels_on(tensor, axis)
        if labels is None:
            ctx.freeze(m.labels, _FIXED)
            continue
        ctx.space.join(
            m.labels.reshape(-1) if m.uniform else m.labels, labels if m.uniform else labels.reshape(_column(m))
        )
        if k < len(roles):
            ctx.space.mark_role(labels, roles[k])


def _column(m: LabelMap) -> list[int]:
    return [-1 if d == m.axis else 1 for d in range(m.labels.ndim)]


def _freeze_per_channel(ctx: TraceContext, tensors: Sequence[torch.Tensor | None]) -> None:
    ctx.freeze_all([t for t in tensors if t is not None], "normalises an axis of fixed size")


def _affine_zero(m: LabelMap, weight: torch.Tensor | None, bias: torch.Tensor | None) -> bool:
    """Whether the output is zero where a channel was removed: scale and shift are zeroed with the channel."""
    return weight is not None or (m.zero and bias is None)


def _batch_norm(
    ctx: TraceContext,
    out: Any,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    mean: torch.Tensor | None,
    var: torch.Tensor | None,
    training: bool,
) -> None:
    maps = []
    tensors = (weight, bias, mean, var)
    labelled = {m.axis for m in ctx.maps(x)}
    others = math.prod(n for axis, n in enumerate(x.shape) if axis != 1 and axis not in labelled)
    if all(m.axis != 1 for m in ctx.maps(x)):
        _freeze_per_channel(ctx, tensors)
    for m in ctx.maps(x):
        if m.axis == 1:
            _join_per_channel(ctx, m, tensors)
            maps.append(m.with_zero(_affine_zero(m, weight, bias)))
        elif training:
            ctx.inexact(m.labels, "normalised by statistics over several channels")
            if others == 1:
                ctx.space.keep_two(m, ctx.because("batch norm refuses statistics of one value"))
            maps.append(m.with_zero(False))
        else:
            maps.append(m.with_zero(False))
    ctx.set(tensors_in(out)[0], maps)


@rule(*operators(aten, "native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm", "miopen_batch_norm"))
def batch_norm(
    ctx: TraceContext,
    out: Any,
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    mean: torch.Tensor | None = None,
    var: torch.Tensor | None = None,
    training: bool = False,
    *args: Any,
    **kwargs: Any,
) -> None:
    """(N, C, …) with per-channel weight, bias, running mean and variance (C,)."""
    if isinstance(mean, bool):
        mean, training = None, mean
    _batch_norm(ctx, out, x, weight, bias, mean, var, training)


@rule(*operators(aten, "_native_batch_norm_legit_no_training", "_batch_norm_no_update"))
def batch_norm_eval(
    ctx: TraceContext, out: Any, x: torch.Tensor, weight: Any, bias: Any, mean: Any, var: Any, *args: Any, **kwargs: Any
) -> None:
    """Batch norm with running statistics."""
    _batch_norm(ctx, out, x, weight, bias, mean, var, False)


@rule(*operators(aten, "_batch_norm_with_update"))
def batch_norm_train(
    ctx: TraceContext, out: Any, x: torch.Tensor, weight: Any, bias: Any, mean: Any, var: Any, *args: Any, **kwargs: Any
) -> None:
    """Batch norm with batch statistics."""
    _batch_norm(ctx, out, x, weight, bias, mean, var, True)


@rule(*operators(aten, "native_group_norm"))
def group_norm(
    ctx: TraceContext,
    out: Any,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    N: int,
    C: int,
    HxW: int,
    group: int,
    eps: float,
) -> None:
    """(N, C, …) normalised over each of ``group`` runs of channels; every run must keep equally many."""
    maps = []
    if all(m.axis != 1 for m in ctx.maps(x)):
        _freeze_per_channel(ctx, (weight, bias))
    for m in ctx.maps(x):
        if m.axis != 1:
            ctx.freeze(m.labels, "group statistics over a labelled axis")
            continue
        _join_per_channel(ctx, m, (weight, bias))
        if group < C:
            ctx.inexact(m.labels, "group norm: statistics over several channels")
            parts = ctx.one_axis(m).reshape(group, -1)
            ctx.space.require_equal_parts(parts, ctx.because("group norm"))
            if N * HxW == 1:
                ctx.space.two_stay.append(TwoStay(parts, ctx.because("group norm refuses statistics of one value")))
        if not isinstance(ctx.running, nn.GroupNorm):
            ctx.ask(m.labels, "a number of groups is passed to group norm")
        maps.append(m.with_zero(_affine_zero(m, weight, bias)))
    ctx.set(tensors_in(out)[0], maps)


@rule(*operators(aten, "native_layer_norm", "_fused_rms_norm"))
def layer_norm(
    ctx: TraceContext,
    out: Any,
    x: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None = None,
    bias: Any = None,
    *args: Any,
) -> None:
    """(…, *normalized_shape) normalised over the last axes."""
    bias = bias if isinstance(bias, torch.Tensor) else None
    first = x.ndim - len(normalized_shape)
    maps = []
    for tensor in (weight, bias):
        for m in ctx.maps(tensor) if tensor is not None else ():
            if not any(o.axis == m.axis + first for o in ctx.maps(x)):
                ctx.freeze(m.labels, "normalises an axis of fixed size")
    for m in ctx.maps(x):
        if m.axis < first:
            maps.append(m.with_zero(m.zero and bias is None))
            continue
        ctx.inexact(m.labels, "layer norm: statistics over channels")
        _join_per_channel(ctx, m, (weight, bias), m.axis - first)
        if not isinstance(ctx.running, (nn.LayerNorm, getattr(nn, "RMSNorm", nn.LayerNorm))):
            ctx.ask(m.labels, "a normalised shape is passed to layer norm")
            ctx.stands(x.shape[m.axis], m.flat)
        maps.append(m.with_zero(weight is not None))
    ctx.set(tensors_in(out)[0], maps)


@rule(*operators(aten, "_weight_norm_interface", "_weight_norm"))
def weight_norm(ctx: TraceContext, out: Any, v: torch.Tensor, g: torch.Tensor, dim: int = 0) -> None:
    """g · v / ‖v‖, the norm taken over all axes but ``dim``."""
    maps = []
    for m in ctx.maps(v):
        if m.axis == dim % v.ndim:
            partner = ctx.map_on(g, dim)
            if partner is None:
                ctx.freeze(m.labels, _FIXED)
            else:
                ctx.space.join(m.labels, partner.labels)
            if m.zero:
                ctx.inexact(m.labels, "weight norm of a filter set to zero is 0 / 0")
            maps.append(m.with_zero(partner is not None and partner.zero))
        else:
            maps.append(m)
    ctx.set(tensors_in(out)[0], maps, True)


@rule(*operators(aten, "local_response_norm"))
def local_response_norm(ctx: TraceContext, out: torch.Tensor, x: torch.Tensor, *args: Any) -> None:
    """Each channel is divided by its neighbours, whose positions count."""
    ctx.freeze_axes(x, [1], "neighbouring channels are compared")
    ctx.set(out, ctx.maps(x))
