"""Channel importance by the scale factors of its norms (network slimming, Liu et al. 2017, arXiv:1708.06519)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from channelwise.errors import InvalidArgumentError
from channelwise.ranking.registry import register
from channelwise.ranking.weights import Weights
from channelwise.structure import Group


@register("bn_scale")
def bn_scale(group: Group, tensors: Mapping[str, torch.Tensor]) -> np.ndarray:
    """Sum of |scale| over the norms a channel passes; InvalidArgumentError for a group without such a norm."""
    weights = Weights.of(tensors)
    # A norm without affine weights still has statistics, which say nothing about importance.
    scales = [s for s in group.slots if s.role == "scale" and not s.tensor.rpartition(".")[2].startswith("running_")]
    if not scales:
        raise InvalidArgumentError(
            f"The ranking 'bn_scale' needs a norm with scale factors, and the group {group.name!r} has none "
            f"(layers: {', '.join(group.layers) or 'none'}). Use 'l1' or exclude the group."
        )
    total = np.zeros(group.size)
    for slots in scales:
        total += weights.slot_norms(slots.tensor, slots.axis, 1)[slots.index].sum(axis=1)
    return total
