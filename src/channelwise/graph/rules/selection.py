"""Operations that pick part of an axis: slices, splits, indexing, padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from channelwise.graph.context import TraceContext
from channelwise.graph.labels import LabelMap
from channelwise.graph.rules.registry import operators, rule

aten = torch.ops.aten


@rule(*operators(aten, "slice", "narrow"))
def slice_(
    ctx: TraceContext,
    out: torch.Tensor,
    x: torch.Tensor,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> None:
    """Part of an axis; along a labelled axis the bounds may be constants, which verification finds out."""
    dim %= x.ndim
    maps = []
    for m in ctx.maps(x):
        if m.labels.shape[dim] == 1 or out.shape[dim] == x.shape[dim]:
            maps.append(m)
            continue
        if m.axis == dim and step != 1:
            ctx.freeze(m.labels, f"one in {step} channels is picked")
        elif m.axis == dim:
            whole = ctx.one_axis(m)
            first, last, _ = slice(start, end).indices(whole.size)
            ctx.saw(whole[first:last], whole[:first], whole[:last], whole[last:], whole)
            _ask_or_freeze(ctx, [whole[:first], whole[first:last], whole[last:]], out.shape[dim], "sliced")
        at: list[slice] = [slice(None)] * x.ndim
        at[dim] = slice(start, end, step)
        maps.append(m.moved(m.labels[tuple(at)], m.axis))
    ctx.set(out, maps, ctx.is_weight(x))


@rule(*operators(aten, "select"))
def select(ctx: TraceContext, out: torch.Tensor, x: torch.Tensor, dim: int, index: int) -> None:
    """One index of an axis; that index of a labelled axis must stay where it is."""
    dim %= x.ndim
    maps = []
    for m in ctx.maps(x):
        if m.axis == dim:
            ctx.freeze_when_used(out, m.labels, f"index {index} is picked out of the channels")
        else:
            labels = np.take(m.labels, index if m.labels.shape[dim] > 1 else 0, dim)
            maps.append(m.moved(labels, m.axis - (dim < m.axis)))
    ctx.set(out, maps, ctx.is_weight(x))


@rule(*operators(aten, "unbind"))
def unbind(ctx: TraceContext, out: Sequence[torch.Tensor], x: torch.Tensor, dim: int = 0) -> None:
    """Every index of an axis by itself; how many there are is seen by the user's code."""
    for m in ctx.maps(x):
        if m.axis == dim % x.ndim:
            ctx.ask(m.labels, "unbound along channels")
    for index, piece in enumerate(out):
        select(ctx, piece, x, dim, index)


@rule(
    *operators(aten, "split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk", "tensor_split", "split_copy")
)
def split(ctx: TraceContext, out: Sequence[torch.Tensor], x: torch.Tensor, sizes: Any, dim: int = 0) -> None:
    """Pieces of an axis. Equal pieces must keep equally many channels; unequal sizes are constants to be verified."""
    dim %= x.ndim
    lengths = [piece.shape[dim] for piece in out]
    pieces: list[list[LabelMap]] = [[] for _ in out]
    for m in ctx.maps(x):
        if m.axis == dim and len(out) > 1:
            labels = ctx.one_axis(m)
            parts = np.split(labels, np.cumsum(lengths)[:-1])
            ctx.saw(*parts, labels)
            if len(set(lengths)) == 1 and lengths[0] > 1:
                ctx.space.require_equal_parts(np.stack(parts), ctx.because("split into equal parts"))
            # Even what computes its sizes from the width (chunk) gives other channels to a piece where one is shorter.
            always = len(set(lengths)) > 1
            _ask_or_freeze(ctx, parts, min(lengths), f"split into {lengths}", always)
        stops = np.cumsum(lengths)
        for k, stop in enumerate(stops):
            at: list[slice] = [slice(None)] * x.ndim
            if m.labels.shape[dim] > 1:
                at[dim] = slice(int(stop) - lengths[k], int(stop))
            pieces[k].append(m.moved(m.labels[tuple(at)], m.axis))
    for piece, maps in zip(out, pieces, strict=True):
        ctx.set(piece, maps, ctx.is_weight(x))


@rule(*operators(aten, "constant_pad_nd"))
def constant_pad_nd(
    ctx: TraceContext, out: torch.Tensor, x: torch.Tensor, pad: Sequence[int], value: float = 0
) -> None:
    """Constant elements before and after; padded channels stay, for their number is a constant."""
    amounts = {x.ndim - 1 - k: (pad[2 * k], pad[2 * k + 1]) for k in range(len(pad) // 2)}
    maps = []
    for m in ctx.maps(x):
        labels, zero = m.labels, m.zero
        before, after = amounts.get(m.axis, (0, 0))
        if min(before, after) < 0:
            ctx.freeze(labels, "channels are cropped by a constant number")
        if before or after:
            widths = [(0, 0)] * x.ndim
            widths[m.axis] = (max(before, 0), max(after, 0))
            label = ctx.space.frozen_label(ctx.because("padded with constant channels"))
            labels = np.pad(labels, widths, constant_values=label)
            crop = slice(max(-before, 0), labels.shape[m.axis] - max(-after, 0))
            labels = labels[tuple(crop if d == m.axis else slice(None) for d in range(x.ndim))]
        if value != 0 and any(any(amounts[d]) for d in amounts if d != m.axis):
            zero = False
        if all(labels.shape[d] in (1, out.shape[d]) for d in range(out.ndim)):
            maps.append(LabelMap(labels, m.axis, zero))
        else:
            ctx.freeze(labels, "the weight of a grouped convolution is padded")
    ctx.set(out, maps, ctx.is_weight(x))


@rule(*operators(aten, "index", "index_select", "_unsafe_index", "embedding"))
def index(ctx: TraceContext, out: torch.Tensor, x: torch.Tensor, *args: Any, **kwargs: Any) -> None:
    """Elements picked by index tensors: the labels are picked by the same indices."""
    if ctx.operation.startswith("aten.index_select"):
        where: tuple[Any, ...] = (slice(None),) * (args[0] % x.ndim) + (args[1],)
    elif ctx.operation.startswith("aten.embedding"):
        where = (args[0],)
    else:
        where = tuple(slice(None) if i is None else i for i in args[0])
    for picker in where:
        if isinstance(picker, torch.Tensor):
            ctx.freeze_all([picker], "used as an index")
    maps = []
    for m in ctx.maps(x):
        labels = torch.from_numpy(np.ascontiguousarray(m.labels)).to(x.device).expand(x.shape)[where].cpu().numpy()
        picked = m.axis < len(where) and isinstance(where[m.axis], torch.Tensor)
        varying = [d for d in range(labels.ndim) if labels.shape[d] > 1 and (labels != np.take(labels, [0], d)).any()]
        if picked:
            ctx.freeze(m.labels, "channels are picked by an index tensor")
        if len(varying) == 1:
            at = tuple(slice(None) if d == varying[0] else slice(0, 1) for d in range(labels.ndim))
            maps.append(LabelMap(labels[at], varying[0], m.zero))
        elif varying:
            ctx.freeze(m.labels, "indexed along several axes")
    ctx.set(out, maps, ctx.is_weight(x))


@rule(*operators(aten, "unfold"))
def unfold(ctx: TraceContext, out: torch.Tensor, x: torch.Tensor, dimension: int, size: int, step: int) -> None:
    """Sliding windows of an axis, which become a new last axis."""
    ctx.freeze_axes(x, [dimension], "windows slide over the channels")
    maps = [m.moved(m.labels[..., None], m.axis) for m in ctx.maps(x) if m.axis != dimension % x.ndim]
    ctx.set(out, maps, ctx.is_weight(x))


def _ask_or_freeze(
    ctx: TraceContext, parts: Sequence[np.ndarray], shortest: int, text: str, always: bool = False
) -> None:
    """Ask about every part by itself. A single picked channel leaves verification nothing to see: its axis stays.

    ``always``: also within functions that are known to adapt.
    """
    for part in parts:
        if shortest > 1:
            ctx.ask(part, text, always)
        else:
            ctx.freeze(part, text)
