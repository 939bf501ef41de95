"""A model's tensors by name, and the types in which sums over them are right."""

from __future__ import annotations

import torch
from torch import nn


def named_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """All parameters, then all buffers, by qualified name; a shared tensor is there under each of its names."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return dict(named)


def at_least_single(values: torch.Tensor) -> torch.Tensor:
    """``values`` in float32 where their type is narrower: sums in half precision are worthless."""
    return values.float() if values.dtype.itemsize < 4 else values


def widest(device: torch.device) -> torch.dtype:
    """The widest floating point type of a device."""
    return torch.float32 if device.type == "mps" else torch.float64
