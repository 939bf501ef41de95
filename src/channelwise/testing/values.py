"""Nested inputs and outputs of models: casting, doubling the batch, flattening, comparing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def arguments(inputs: Any, kwargs: Mapping[str, Any] | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments from what ``channelwise.trace`` takes."""
    if isinstance(inputs, Mapping):
        return (), {**inputs, **(kwargs or {})}
    return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,), dict(kwargs or {})


def _map(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return type(value)((k, _map(function, v)) for k, v in value.items())  # type: ignore[call-arg]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_map(function, v) for v in value))
    if isinstance(value, (tuple, list)):
        return type(value)(_map(function, v) for v in value)
    return value


def cast(value: Any, dtype: torch.dtype | None) -> Any:
    """Floating point tensors as ``dtype``; None leaves them as they are."""
    return _map(lambda t: t.to(dtype) if dtype is not None and t.is_floating_point() else t, value)


def doubled(value: Any) -> Any:
    """Every tensor of batch size 1 becomes a batch of two different samples."""

    def double(tensor: Tensor) -> Tensor:
        if tensor.dim() < 2 or tensor.shape[0] != 1:
            return tensor
        return torch.cat([tensor, tensor.flip(-1)])

    return _map(double, value)


def nudged(value: Any) -> Any:
    """Floating point tensors with as much noise as rounding makes: what it changes in outputs is no mismatch."""

    def nudge(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return tensor * (1 + 16 * torch.finfo(tensor.dtype).eps * noise.to(tensor.device)).to(tensor.dtype)

    return _map(nudge, value)


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors of a nest of tuples, lists, mappings and objects with attributes, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)
    elif hasattr(value, "__dict__") and not isinstance(value, (type, nn.Module)):
        yield from tensors(vars(value))


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
