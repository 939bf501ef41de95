"""Example inputs: as arguments of the model, in private copies, of another type, doubled, with nothing constant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from channelwise.inputs.tree import mapped


def as_arguments(inputs: Any, kwargs: Mapping[str, Any] | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments from what users call inputs: a tensor, a sequence of them, or a dict."""
    named = dict(kwargs or {})
    if isinstance(inputs, Mapping):
        return (), {**inputs, **named}
    if isinstance(inputs, Sequence):
        return tuple(inputs), named
    return (inputs,), named


def number_of_samples(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """How many samples the arguments are: the first axis of the first tensor, or as many as a list has images.

    A list of tensors (C, H, W), which differ in H and W, is how detectors take their images.
    """
    for value in [*args, *kwargs.values()]:
        if isinstance(value, Mapping):
            found = number_of_samples((), value)
        elif isinstance(value, (list, tuple)):
            images = value and all(isinstance(v, torch.Tensor) and v.ndim == 3 for v in value)
            found = len(value) if images else number_of_samples(value, {})
        else:
            found = value.shape[0] if isinstance(value, torch.Tensor) and value.ndim else 0
        if found:
            return found
    return 0


def is_constant(tensor: torch.Tensor) -> bool:
    """Whether all elements are equal."""
    flat = tensor.detach().flatten()
    return bool((flat[:64] == flat[0]).all()) and bool((flat == flat[0]).all())


def own_copy(value: Any) -> Any:
    """The inputs with their tensors copied: models may write into what they are given."""
    return mapped(value, lambda tensor: tensor.detach().clone())


def varied(value: Any) -> Any:
    """The inputs with constant images replaced by random ones: zeros would hide mismatches."""

    def vary(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_floating_point() and tensor.numel() > 1 and is_constant(tensor):
            generator = torch.Generator().manual_seed(0)
            return torch.randn(tensor.shape, generator=generator).to(tensor.device, tensor.dtype)
        return tensor

    return mapped(value, vary)


def doubled(value: Any) -> Any:
    """The inputs with two samples that differ where there is one: batch norm wants more than one value a channel."""
    return mapped(value, lambda t: torch.cat([t, t.flip(-1)]) if t.ndim and t.shape[0] == 1 else t)


def cast(value: Any, dtype: torch.dtype | None) -> Any:
    """The inputs with floating point tensors as ``dtype``; None leaves them as they are."""
    return mapped(value, lambda t: t.to(dtype) if dtype is not None and t.is_floating_point() else t)
