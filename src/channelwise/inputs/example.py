"""Example inputs: as arguments of the model, in private copies, and with nothing constant in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch


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
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    return _rebuilt(value, own_copy)


def varied(value: Any) -> Any:
    """The inputs with constant images replaced by random ones: zeros would hide mismatches."""
    if isinstance(value, torch.Tensor):
        if value.is_floating_point() and value.numel() > 1 and is_constant(value):
            generator = torch.Generator().manual_seed(0)
            return torch.randn(value.shape, generator=generator).to(value.device, value.dtype)
        return value
    return _rebuilt(value, varied)


def _rebuilt(value: Any, change: Callable[[Any], Any]) -> Any:
    """Plain containers with ``change`` applied to what they hold; anything else as it is."""
    if type(value) is dict:
        return {k: change(v) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(change(v) for v in value)
    return value
