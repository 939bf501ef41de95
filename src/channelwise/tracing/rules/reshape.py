"""Reshapes: axes are merged and split in blocks; splitting a labelled axis ties the parts, heads stay whole."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from channelwise.tracing.context import TraceContext
from channelwise.tracing.labels import LabelMap
from channelwise.tracing.rules.registry import operators, rule

aten = torch.ops.aten

Block = tuple[tuple[int, ...], tuple[int, ...]]


def blocks(old: Sequence[int], new: Sequence[int]) -> list[Block]:
    """Pair up axes of ``old`` with axes of ``new`` that hold the same elements; axes of length 1 belong to no block."""
    found: list[Block] = []
    i = j = 0
    while i < len(old) or j < len(new):
        if i < len(old) and old[i] == 1:
            i += 1
            continue
        if j < len(new) and new[j] == 1:
            j += 1
            continue
        rows, columns = [i], [j]
        left, right = old[i], new[j]
        while left != right:
            if left < right:
                i += 1
                left *= old[i]
                rows.append(i)
            else:
                j += 1
                right *= new[j]
                columns.append(j)
        i, j = i + 1, j + 1
        found.append((tuple(r for r in rows if old[r] != 1), tuple(c for c in columns if new[c] != 1)))
    return found


@rule(
    *operators(
        aten, "view", "_unsafe_view", "reshape", "_reshape_alias", "_reshape_copy", "unflatten", "flatten", "view_copy"
    )
)
def reshape(ctx: TraceContext, out: torch.Tensor, x: torch.Tensor, *args: Any, **kwargs: Any) -> None:
    """The same elements in another shape. Whether the sizes are constants of the user is left to verification."""
    maps = ctx.maps(x)
    if out.numel() == 0 or out.dtype != x.dtype:
        ctx.freeze_all([x], "reinterpreted")
        ctx.set(out, (), ctx.is_weight(x))
        return
    if not maps:
        ctx.set(out, (), ctx.is_weight(x))
        return
    results = []
    pairs = blocks(x.shape, out.shape)
    for m in _one_of_merged(ctx, maps, pairs) if len(maps) > 1 else maps:
        across = {d: _alone(pairs, d) for d in range(x.ndim) if d != m.axis and m.labels.shape[d] > 1}
        if None in across.values():
            ctx.freeze(m.labels, "the weight of a grouped convolution is reshaped across its blocks")
            continue
        rows, columns = next(b for b in pairs if m.axis in b[0])
        moved = _through(ctx, m, x.shape, out.shape, rows, columns, across)  # type: ignore[arg-type]
        if moved is not None:
            results.append(moved)
        if moved is None or moved.axis != ctx.call.free_axis:
            ctx.ask(m.labels, f"reshaped from {tuple(x.shape)} to {tuple(out.shape)}")
            if moved is not None and moved.uniform:
                ctx.saw(moved.labels)
                ctx.stands(out.shape[moved.axis], moved.flat, moved.axis)
    ctx.set(out, results, ctx.is_weight(x))


def _one_of_merged(ctx: TraceContext, maps: Sequence[LabelMap], pairs: Sequence[Block]) -> list[LabelMap]:
    """The maps without those of axes that cannot get shorter, as they are merged with one that does.

    Of channels merged with the axis of their repeats, the number of repeats stays. Of heads merged with an axis that
    all of them share, the heads can go, and that axis stays.
    """
    rows_of = {m.axis: next(rows for rows, _ in pairs if m.axis in rows) for m in maps}
    kept = []
    for m in maps:
        others = [o for o in maps if o.axis != m.axis and rows_of[o.axis] == rows_of[m.axis]]
        if ctx.is_repeat(m) and any(not ctx.is_repeat(o) for o in others):
            ctx.stays_repeated(m.labels, "so often are channels repeated")
        elif any(ctx.shares(o) for o in others) and not ctx.shares(m):
            ctx.freeze(m.labels, "all heads share these")
        else:
            kept.append(m)
    return kept


def _alone(pairs: Sequence[Block], axis: int) -> int | None:
    """Where an axis is afterwards; None if it is merged or split."""
    return next((columns[0] for rows, columns in pairs if rows == (axis,) and len(columns) == 1), None)


def _through(
    ctx: TraceContext,
    m: LabelMap,
    old: Sequence[int],
    new: Sequence[int],
    rows: tuple[int, ...],
    columns: tuple[int, ...],
    across: Mapping[int, int],
) -> LabelMap | None:
    """The map of an axis in ``rows`` along one of ``columns``.

    ``across``: further axes that its labels depend on (blocks of a grouped convolution's weight), and where these are
    afterwards.
    """
    lead = [old[d] for d in across]
    flat = np.moveaxis(m.labels, list(across), range(len(lead))).reshape(*lead, -1)
    grid = flat.reshape([*lead, *(old[r] if r == m.axis else 1 for r in rows)])
    labels = np.broadcast_to(grid, [*lead, *(old[r] for r in rows)]).reshape([*lead, *(new[c] for c in columns)])
    varying = [k for k in range(len(columns)) if _varies(labels, len(lead) + k)]
    if not varying and len(columns) > 1:
        # One channel fills the whole axis, so it can never go, and which of the new axes is its own is unknown.
        ctx.freeze(labels, "one channel fills a whole axis that is reshaped")
        return None
    keep = _shrinking(ctx, varying, columns, new)
    for k in range(len(columns)):
        if k != keep:
            at = len(lead) + k
            labels = ctx.space.tie(labels, at) if k in varying else np.take(labels, [0], at)
    # The axes of blocks come first here: move them to their places.
    places = [*across.values(), columns[keep]]
    order = sorted(range(len(places)), key=places.__getitem__)
    shape = [new[d] if d in places else 1 for d in range(len(new))]
    return m.moved(labels.reshape(*lead, -1).transpose(order).reshape(shape), columns[keep])


def _varies(labels: np.ndarray, axis: int) -> bool:
    return not np.array_equal(labels, np.broadcast_to(np.take(labels, [0], axis), labels.shape))


def _shrinking(ctx: TraceContext, varying: list[int], columns: tuple[int, ...], new: Sequence[int]) -> int:
    """Which of the axes that a labelled axis is split into gets shorter.

    It is the axis of attention heads, as whole heads go; or one as long as the channels of another tensor; or one whose
    length was left open. Else (g, c/g) keeps g parts, and (c, h, w) keeps space.
    """
    behind = [math.prod(new[c] for c in columns[k + 1 :]) for k in range(len(columns))]
    heads = [k for k in varying if ctx.is_number_of_heads(columns[k], new[columns[k]], behind[k])]
    if heads and len(columns) > 1:
        # The channels of a head come last: an axis there is not that of the heads, even if it is as long.
        return next((k for k in reversed(heads) if k < len(columns) - 1), heads[-1])
    if ctx.call.free_axis in columns:
        # The open length is the rest if another length is the number of channels of a tensor.
        read = [k for k in varying if ctx.is_read(columns[k])]
        return read[0] if len(read) == 1 else columns.index(ctx.call.free_axis)
    if len(varying) < 2:
        return varying[0] if varying else 0
    return varying[0] if len(columns) > 2 else varying[-1]


@rule(*operators(aten, "as_strided", "as_strided_", "set_"))
def as_strided(ctx: TraceContext, out: torch.Tensor, x: torch.Tensor, *args: Any, **kwargs: Any) -> None:
    """Another view of the same memory. With the same shape and strides the labels stay; else nothing is known."""
    if out is x:
        return
    if out.shape == x.shape and out.stride() == x.stride():
        ctx.set(out, ctx.maps(x), ctx.is_weight(x))
        for m in ctx.maps(x):
            ctx.ask(m.labels, "memory is viewed by constant sizes")
    else:
        ctx.freeze_all([x], "memory is viewed in another order")
        ctx.set(out, (), ctx.is_weight(x))
