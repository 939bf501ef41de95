"""Operations that pick part of an axis: slices, splits, indexing, padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from channelwise.tracing.context import TraceContext
from channelwise.tracing.labels import LabelMap, along
from channelwise.tracing.rules.registry import operators, rule

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
            for value, run in ((first, whole[:first]), (last, whole[:last]), (last - first, whole[first:last])):
                ctx.stands(value, run)
            for part in (whole[:first], whole[first:last], whole[last:]):
                _ask_or_freeze(ctx, part, whole, out.shape[dim], "sliced")
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
    """Every index of an axis as a tensor of its own. The user's code sees how many there are."""
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
            # Equal parts have their own rule: each may choose its channels.
            for part in parts[: 1 if len(set(lengths)) == 1 else None]:
                ctx.stands(part.size, part)
            if len(set(lengths)) == 1 and lengths[0] > 1:
                ctx.space.require_equal_parts(np.stack(parts), ctx.because("split into equal parts"))
            elif ctx.call.adapts:
                _all_lose_as_many(ctx, parts)
            # chunk, too, gives other channels to a piece if one is shorter, although it follows the width.
            always = len(set(lengths)) > 1
            listed = isinstance(sizes, (list, tuple))
            for part in parts:
                # The sizes of a list have to add up: if one is a single channel, the others can still be tried.
                shortest = part.size if listed else min(lengths)
                _ask_or_freeze(ctx, part, labels, shortest, f"split into {lengths}", always)
        stops = np.cumsum(lengths)
        for k, stop in enumerate(stops):
            at: list[slice] = [slice(None)] * x.ndim
            if m.labels.shape[dim] > 1:
                at[dim] = slice(int(stop) - lengths[k], int(stop))
            pieces[k].append(m.moved(m.labels[tuple(at)], m.axis))
    for piece, maps in zip(out, pieces, strict=True):
        ctx.set(piece, maps, ctx.is_weight(x))


def _all_lose_as_many(ctx: TraceContext, parts: Sequence[np.ndarray]) -> None:
    """Chunks of n, n, … and a rest of r < n channels become n', n', … and r' only if each of them loses n - n'."""
    rest = min(part.size for part in parts)
    ctx.space.tie(np.stack([part[:rest] for part in parts]), 0)
    for part in parts:
        if part.size > rest:
            ctx.freeze(part[rest:], f"split into {[p.size for p in parts]}, as many channels must go from every part")


@rule(*operators(aten, "constant_pad_nd"))
def constant_pad_nd(
    ctx: TraceContext, out: torch.Tensor, x: torch.Tensor, pad: Sequence[int], value: float = 0
) -> None:
    """Constant elements before and after. Padded channels stay, as their number is a constant."""
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
    """Elements picked by index tensors along some axes; channels along the others pass through."""
    if ctx.operation.startswith("aten.index_select"):
        where: list[Any] = [None] * (args[0] % x.ndim) + [args[1]]
    elif ctx.operation.startswith("aten.embedding"):
        where = [args[0]]
    else:
        where = list(args[0])
    ctx.freeze_all([p for p in where if isinstance(p, torch.Tensor)], "used as an index")
    moved = _unpicked(where, x.ndim, out.ndim)
    maps = []
    for m in ctx.maps(x):
        if m.axis not in moved:
            ctx.freeze(m.labels, "channels are picked by an index tensor")
        elif m.uniform:
            maps.append(along(m.flat, moved[m.axis], out.ndim, m.zero))
        else:
            ctx.freeze(m.labels, "the weight of a grouped convolution is indexed")
    ctx.set(out, maps, ctx.is_weight(x))


@rule(*operators(aten, "gather"))
def gather(ctx: TraceContext, out: torch.Tensor, x: torch.Tensor, dim: int, index: torch.Tensor, **kwargs: Any) -> None:
    """Elements picked along one axis, by an index for every place of the other axes, which may be fewer places."""
    dim %= max(x.ndim, 1)
    ctx.freeze_axes(x, [dim], "channels are picked by an index tensor")
    met = {m.axis for m in ctx.maps(x) if m.axis != dim and m.uniform and out.shape[m.axis] == x.shape[m.axis]}
    ctx.freeze_axes(index, [d for d in range(index.ndim) if d not in met], "used as an index")
    maps = []
    for m in ctx.maps(x):
        own = ctx.labels_on(index, m.axis)
        if m.axis not in met:
            ctx.freeze(m.labels, "picked by an index tensor of a fixed size")
            continue
        if own is None:
            ctx.ask(m.labels, "picked by an index tensor of a fixed size")
        else:
            ctx.space.join(m.flat, own)
        maps.append(along(m.flat, m.axis, out.ndim, m.zero))
    ctx.set(out, maps, ctx.is_weight(x))


@rule(*operators(aten, "index_put", "index_put_", "_unsafe_index_put"))
def index_put(
    ctx: TraceContext,
    out: torch.Tensor,
    x: torch.Tensor,
    indices: Sequence[torch.Tensor | None],
    values: torch.Tensor,
    accumulate: bool = False,
) -> None:
    """``x[indices] = values``: along axes that no index tensor picks from, channels of both are the same."""
    pickers = [p for p in indices if p is not None]
    ctx.freeze_all(pickers, "used as an index")
    others = x.ndim - sum(_width(p) for p in pickers)
    ndim = others + max(1 if _is_mask(p) else p.ndim for p in pickers)
    moved = _unpicked(indices, x.ndim, ndim)
    ctx.freeze_axes(x, [axis for axis in range(x.ndim) if axis not in moved], "channels are picked by an index tensor")
    offset = ndim - values.ndim
    places = {axis: place - offset for axis, place in moved.items() if place >= offset}
    met = {axis: place for axis, place in places.items() if values.shape[place] > 1}
    ctx.freeze_axes(values, [d for d in range(values.ndim) if d not in met.values()], "put where an index tensor says")
    given = {axis: ctx.flat_map(values, place) for axis, place in met.items()}
    maps = []
    for axis in moved:
        old, new = ctx.flat_map(x, axis), given.get(axis)
        if old is not None and new is not None:
            ctx.space.join(old.labels, new.labels)
        elif (new or old) is not None and axis in given:
            say = ctx.ask if ctx.is_fresh(x if old is None else values) else ctx.freeze
            say((new or old).labels, "put into a tensor of fixed size, or such a tensor into it")  # type: ignore[union-attr]
        if (old or new) is not None:
            zero = old is not None and new is not None and old.zero and new.zero
            maps.append(along((old or new).flat, axis, x.ndim, zero))  # type: ignore[union-attr]
    if out is x and any(not m.zero for m in maps):
        ctx.forget_zero(x)
    ctx.set(out, maps)


def _is_mask(picker: torch.Tensor) -> bool:
    return picker.dtype in (torch.bool, torch.uint8)


def _width(picker: torch.Tensor) -> int:
    """From how many axes an index tensor picks."""
    return picker.ndim if _is_mask(picker) else 1


def _unpicked(where: Sequence[torch.Tensor | None], before: int, after: int) -> dict[int, int]:
    """Where the axes that no index tensor picks from go; a mask picks from as many axes as it has.

    The picked axes become new ones: in their place if they are neighbours, in front if they are not.
    """
    picked: list[int] = []
    axis = 0
    for picker in where:
        width = 1 if picker is None else _width(picker)
        picked += range(axis, axis + width) if picker is not None else ()
        axis += width
    others = [d for d in range(before) if d not in picked]
    neighbours = bool(picked) and picked[-1] - picked[0] + 1 == len(picked)
    place = picked[0] if neighbours else 0
    new = after - len(others)
    return {d: k + (new if k >= place else 0) for k, d in enumerate(others)}


@rule(*operators(aten, "unfold"))
def unfold(ctx: TraceContext, out: torch.Tensor, x: torch.Tensor, dimension: int, size: int, step: int) -> None:
    """Sliding windows of an axis, which become a new last axis."""
    ctx.freeze_axes(x, [dimension], "windows slide over the channels")
    maps = [m.moved(m.labels[..., None], m.axis) for m in ctx.maps(x) if m.axis != dimension % x.ndim]
    ctx.set(out, maps, ctx.is_weight(x))


def _ask_or_freeze(
    ctx: TraceContext, part: np.ndarray, whole: np.ndarray, shortest: int, text: str, always: bool = False
) -> None:
    """Ask about part of an axis. A single picked channel leaves verification nothing to see: its axis stays.

    ``always``: also within functions that are known to adapt.
    """
    if shortest > 1:
        ctx.ask(part, text, always, whole)
    else:
        ctx.freeze(part, text)
