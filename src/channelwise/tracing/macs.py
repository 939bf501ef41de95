"""MACs of the products that run, whether labels meet there or not; beside them what torch's flop counter would say."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import flop_registry

from channelwise.tracing.context import TraceContext
from channelwise.tracing.labels import LabelMap
from channelwise.tracing.rules.registry import ATTENTION, operators

log = logging.getLogger(__name__)

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class MacRecord:
    """MACs of one executed operation: ``scale`` times the lengths of axes, given by their labels and as a number."""

    module: str
    operation: str
    scale: float
    factors: tuple[tuple[np.ndarray, int], ...]


@dataclass(eq=False)
class Macs:
    """The products of a run: ``ours`` are their MACs by operator.

    If ``detailed``, there are records with labels, and ``torchs`` are the MACs that torch's flop counter finds; None
    where it does not know an operator.
    """

    detailed: bool = True
    records: list[MacRecord] = field(default_factory=list)
    ours: dict[str, float] = field(default_factory=dict)
    torchs: dict[str, float | None] = field(default_factory=dict)

    def add(self, ctx: TraceContext, func: Any, out: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Count an operation that has run, if it is a product."""
        packet = func.overloadpacket
        factors = _FACTORS.get(packet)
        if factors is None and packet not in flop_registry:
            return
        name = str(func)
        torchs = _by_torch(packet, out, args, kwargs) if self.detailed or factors is None else None
        # Without factors a formula is all that is known; operators without a rule keep all their channels.
        terms: _Terms = [(torchs or 0.0, ())] if factors is None else factors(out, *args, **kwargs)
        self.ours[name] = self.ours.get(name, 0.0) + _value(terms)
        if self.detailed:
            self.records += [_record(ctx, name, scale, axes) for scale, axes in terms]
            before = self.torchs.get(name, 0.0)
            self.torchs[name] = None if torchs is None or before is None else before + torchs

    @property
    def total(self) -> float:
        """MACs of all samples."""
        return sum(self.ours.values())

    def difference(self, batch: int) -> str | None:
        """Where torch's flop counter comes to another total for one of ``batch`` samples; None if it does not."""
        apart = [name for name, ours in self.ours.items() if self.torchs[name] != ours]
        if not apart:
            return None
        shown = "; ".join(
            f"{name}: {self.ours[name] / batch:,.0f} here, {_shown(self.torchs[name], batch)}" for name in apart
        )
        other = sum(found or 0.0 for found in self.torchs.values()) / batch
        return (
            f"MACs of one sample: {self.total / batch:,.0f} are counted here, {other:,.0f} by torch.utils.flop_counter "
            f"({shown})"
        )


def _shown(macs: float | None, batch: int) -> str:
    return "no formula there" if macs is None else f"{macs / batch:,.0f} there"


def _by_torch(packet: Any, out: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> float | None:
    """What the formula of torch's flop counter says; None if there is none, or none for these shapes."""
    formula = flop_registry.get(packet) or flop_registry.get(_SAME_FORMULA.get(packet))
    if formula is None:
        return None
    try:
        return formula(*args, **kwargs, out_val=out) / 2
    except Exception as error:  # formulas of users, and of versions that do not know grouped queries
        log.debug("the formula of torch's flop counter for %s failed: %r", packet, error)
        return None


_Axes = Sequence[tuple[torch.Tensor, int]]
_Terms = list[tuple[float, _Axes]]

_FACTORS: dict[Any, Callable[..., _Terms]] = {}
"""By operator: ``factors(out, *args, **kwargs)`` gives scales, and the axes by whose lengths they are multiplied."""

_SAME_FORMULA = dict.fromkeys(ATTENTION, aten._scaled_dot_product_flash_attention)
"""Torch's counter knows only some of the kernels of one operation."""


def _counts(packets: Sequence[Any]) -> Callable[[Callable[..., _Terms]], Callable[..., _Terms]]:
    def register(factors: Callable[..., _Terms]) -> Callable[..., _Terms]:
        _FACTORS.update((packet, factors) for packet in packets if packet is not None)
        return factors

    return register


def _value(terms: _Terms) -> float:
    return sum(scale * math.prod(tensor.shape[axis] for tensor, axis in axes) for scale, axes in terms)


def formulas_for_torch() -> dict[Any, Callable[..., float]]:
    """``custom_mapping`` for torch's flop counter: the operators that are counted here and not there."""

    def formula(factors: Callable[..., _Terms]) -> Callable[..., float]:
        def flops(*args: Any, out_val: Any, **kwargs: Any) -> float:
            return 2 * _value(factors(out_val, *args, **kwargs))

        flops._get_raw = True  # type: ignore[attr-defined]
        return flops

    return {packet: formula(factors) for packet, factors in _FACTORS.items() if packet not in flop_registry}


@_counts(operators(aten, "mm", "bmm", "_int_mm"))
def _product(out: Any, a: torch.Tensor, b: torch.Tensor, **options: Any) -> _Terms:
    """(…, n, k) @ (…, k, m)."""
    return [(1, [*((a, axis) for axis in range(a.ndim)), (b, -1)])]


@_counts(operators(aten, "mv", "dot", "vdot"))
def _product_with_vector(out: Any, a: torch.Tensor, b: torch.Tensor) -> _Terms:
    """(n, k) @ (k,), and (k,) @ (k,)."""
    return [(1, [(a, axis) for axis in range(a.ndim)])]


@_counts(operators(aten, "addmv"))
def _product_with_vector_and_sum(
    out: Any, bias: torch.Tensor, a: torch.Tensor, b: torch.Tensor, **options: Any
) -> _Terms:
    return _product_with_vector(out, a, b)


@_counts(operators(aten, "_trilinear"))
def _three(out: Any, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, *new: Any, unroll_dim: int = 1) -> _Terms:
    """Products of three (`torch.nn.Bilinear`), one for every term of the sums; ``new``: the axes that each lacks."""
    axes = []
    for axis in range(a.ndim + len(new[0])):
        tensor, lacks = next(pair for pair in zip((a, b, c), new, strict=False) if axis not in pair[1])
        axes.append((tensor, axis - sum(other < axis for other in lacks)))
    return [(1, axes)]


@_counts(operators(aten, "addmm", "baddbmm", "addbmm", "_addmm_activation"))
def _product_and_sum(out: Any, bias: torch.Tensor, a: torch.Tensor, b: torch.Tensor, **options: Any) -> _Terms:
    """bias + a @ b: the sum is not counted."""
    return _product(out, a, b)


@_counts(operators(aten, "convolution", "_convolution", "convolution_overrideable"))
def _convolution(
    out: Any, x: torch.Tensor, weight: torch.Tensor, bias: Any, stride: Any, padding: Any, dilation: Any,
    transposed: bool, *options: Any,
) -> _Terms:  # fmt: skip
    """x (N, C, …), weight (O, C/g, …), transposed (C, O/g, …): once for every place of the output, of the input."""
    places = x if transposed else out
    axes = [(x, 0), (weight, 0), (weight, 1), *((places, axis) for axis in range(2, places.ndim))]
    return [(math.prod(weight.shape[2:]), axes)]


@_counts(operators(aten, "conv_tbc"))
def _convolution_of_time(out: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, pad: int = 0) -> _Terms:
    """x (T, N, C), weight (K, C, O)."""
    return [(1, [(out, 0), (x, 1), *((weight, axis) for axis in range(3))])]


@_counts(ATTENTION)
def _attention(
    out: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **options: Any
) -> _Terms:
    """query (B, heads, L, E), key (B, heads or fewer, S, E), value (…, S, V): L·S·(E + V) for every query head."""
    rows = [(query, axis) for axis in range(query.ndim - 1)]
    return [(1, [*rows, (key, -2), (key, -1)]), (1, [*rows, (key, -2), (value, -1)])]


@_counts(operators(aten, "mkldnn_rnn_layer"))
def _recurrent_layer(out: Any, x: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor, *options: Any) -> _Terms:
    """x (T, N, I), weights (gates·H, I) and (gates·H, H): each is multiplied with once for every step."""
    return [(1, [*((x, axis) for axis in range(x.ndim - 1)), (w, 0), (w, 1)]) for w in (w1, w2)]


@_counts(operators(aten, "_cudnn_rnn", "miopen_rnn"))
def _recurrent_layers(out: Any, x: torch.Tensor, weights: Sequence[torch.Tensor], *options: Any) -> _Terms:
    """The same for the weights of all layers in a row, biases (gates·H,) among them."""
    steps = [(x, axis) for axis in range(x.ndim - 1)]
    return [(1, [*steps, (w, 0), (w, 1)]) for w in weights if w.ndim == 2]


def _record(ctx: TraceContext, operation: str, scale: float, axes: _Axes) -> MacRecord:
    factors = []
    for tensor, axis in axes:
        labels = ctx.map_on(tensor, axis)
        if labels is None:
            scale *= tensor.shape[axis]
        else:
            factors.append((_block_representatives(labels), tensor.shape[axis]))
    return MacRecord(ctx.module, operation, scale, tuple(factors))


def _block_representatives(found: LabelMap) -> np.ndarray:
    """Labels along the map's axis, (n,) or, where blocks of rows differ, those of every block one after another."""
    if found.uniform:
        return found.flat
    rows = np.moveaxis(found.labels, found.axis, -1).reshape(-1, found.labels.shape[found.axis])
    return np.unique(rows, axis=0).reshape(-1)
