"""Where the slots of a tensor are that are removed."""

from __future__ import annotations

import torch

from channelwise.surgery.cuts import Cut


def removed_mask(cut: Cut, besides: int | None = None) -> torch.Tensor:
    """True where a slot is removed; on the CPU, broadcasts to the original shape (length 1 along axes kept whole).

    ``besides``: an axis along which nothing counts as removed.
    """
    dims = len(cut.info.shape)
    mask = torch.zeros([1] * dims, dtype=torch.bool)
    if cut.columns is not None and besides != 1:
        mask = mask | _removed_columns(cut)
    for axis, kept in cut.axes.items():
        if axis == besides:
            continue
        along = torch.ones(cut.info.shape[axis], dtype=torch.bool)
        along[torch.from_numpy(kept)] = False
        mask = mask | along.reshape([-1 if a == axis else 1 for a in range(dims)])
    return mask


def _removed_columns(cut: Cut) -> torch.Tensor:
    blocks, (rows, columns) = cut.info.blocks, cut.info.shape[:2]
    gone = torch.ones(blocks * columns, dtype=torch.bool)
    gone[torch.from_numpy(cut.kept[1])] = False
    per_row = gone.reshape(blocks, columns).repeat_interleave(rows // blocks, dim=0)
    return per_row.reshape(rows, columns, *[1] * (len(cut.info.shape) - 2))
