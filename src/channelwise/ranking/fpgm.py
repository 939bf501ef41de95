"""Channel importance by distance from the geometric median of the filters (He et al. 2019, arXiv:1811.00250)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from channelwise.ranking.registry import register
from channelwise.ranking.weights import Weights
from channelwise.structure import Group

COLUMNS = 4096


@register("fpgm")
def fpgm(group: Group, tensors: Mapping[str, torch.Tensor]) -> np.ndarray:
    """Sum of the Euclidean distances from a channel's filter to all other filters of the group.

    A channel's filter is the concatenation of all its output slots. A low score means that others can replace it.
    """
    weights = Weights.of(tensors)
    squared = np.zeros((group.size, group.size))
    for slots in weights.ranked(group):
        rows = weights.rows(slots.tensor, slots.axis)
        if rows.is_complex():
            rows = torch.view_as_real(rows).flatten(1)
        # A few columns at a time, as double precision copies of a wide layer would not fit into memory.
        for part in rows.split(COLUMNS, dim=1):
            # Some accelerators have no double precision; there the host computes.
            double = (part.cpu() if part.device.type == "mps" else part).double()
            for index in slots.index.T:
                squared += _squared_distances(double[torch.as_tensor(index, device=double.device)])
    return np.sqrt(squared).sum(axis=1)


def _squared_distances(rows: torch.Tensor) -> np.ndarray:
    # Distances do not change when the mean is taken away, and the differences below lose fewer digits.
    rows = rows - rows.mean(dim=0)
    gram = rows @ rows.T
    norms = gram.diagonal()
    squared = (norms[:, None] + norms[None, :] - 2 * gram).clamp_(min=0)
    # Rounding noise must not set equal filters apart; its root would be large.
    squared[squared < 1e-13 * (norms[:, None] + norms[None, :])] = 0
    return squared.fill_diagonal_(0).cpu().numpy()
