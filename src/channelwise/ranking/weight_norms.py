"""Channel importance by the size of its filters: L1 (Li et al. 2017, arXiv:1608.08710) and L2 norm."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from channelwise.ranking.registry import register
from channelwise.ranking.weights import Weights
from channelwise.structure import Group


@register("l1")
def l1(group: Group, tensors: Mapping[str, torch.Tensor]) -> np.ndarray:
    """Sum of absolute weights over all output slots of a channel."""
    return _power_sum(group, tensors, 1)


@register("l2")
def l2(group: Group, tensors: Mapping[str, torch.Tensor]) -> np.ndarray:
    """Root of the sum of squared weights over all output slots of a channel."""
    return np.sqrt(_power_sum(group, tensors, 2))


def _power_sum(group: Group, tensors: Mapping[str, torch.Tensor], order: int) -> np.ndarray:
    weights = Weights.of(tensors)
    total = np.zeros(group.size)
    for slots in weights.ranked(group):
        norms = weights.slot_norms(slots.tensor, slots.axis, order)
        total += (norms[slots.index] ** order).sum(axis=1)
    return total
