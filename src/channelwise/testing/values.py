"""Tensors compared: how far apart, beside what rounding does to them, equal, of the same shape."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from channelwise.inputs.tree import mapped


def nudged(value: Any) -> Any:
    """Inputs with as much noise as rounding makes: what it changes in outputs is no mismatch."""

    def nudge(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return tensor * (1 + 16 * torch.finfo(tensor.dtype).eps * noise.to(tensor.device)).to(tensor.dtype)

    return mapped(value, nudge)


def distance(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest difference, relative to the largest value of each output; infinite when the shapes differ."""
    if [shape_of(t) for t in ours] != [shape_of(t) for t in theirs]:
        return float("inf")
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        if a.numel() == 0 or equal(a, b):
            continue
        if not (a.is_floating_point() or a.is_complex()):
            return float("inf")
        gap = ((a - b).abs().max() / b.abs().max().clamp_min(1e-30)).item()
        worst = max(worst, gap if gap == gap else float("inf"))
    return worst


def equal(a: Tensor, b: Tensor) -> bool:
    """Same shape, dtype and values; NaN equals NaN."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return bool(((a == b) | ((a != a) & (b != b))).all())


def digest(tensor: Tensor) -> str:
    """What tells values of a tensor from others, without a copy of them; of a large model that matters."""
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.blake2b(values.data, digest_size=16).hexdigest()


def shape_of(value: Any) -> tuple[int, ...]:
    """The shape of a tensor; empty for anything else."""
    return tuple(value.shape) if isinstance(value, Tensor) else ()
