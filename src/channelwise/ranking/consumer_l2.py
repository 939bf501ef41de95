"""Channel importance by the weights that read it: what pruning a channel takes away from the layers behind it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from channelwise.ranking.registry import register
from channelwise.ranking.weights import Weights
from channelwise.structure import Group


@register("consumer_l2")
def consumer_l2(group: Group, tensors: Mapping[str, torch.Tensor]) -> np.ndarray:
    """Root of the sum of squared weights over all input slots of a channel: the slices of later layers that read it.

    NVIDIA Model Optimizer ranks channels by it. A group whose channels no weight reads (they only pass
    attention, say) is scored by the weights that produce them, as `l2` does.
    """
    weights = Weights.of(tensors)
    total = np.zeros(group.size)
    for slots in weights.consumers(group) or weights.ranked(group):
        total += (weights.slot_norms(slots.tensor, slots.axis, 2)[slots.index] ** 2).sum(axis=1)
    return np.sqrt(total)
