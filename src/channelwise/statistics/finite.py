"""Statistics of calibration images that are no numbers, and which images or layer they come from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from channelwise.errors import EvaluationError
from channelwise.inputs.tree import tensors_in

LARGEST = torch.finfo(torch.float32).max
"""Statistics are kept in single precision."""


def usable(statistics: Tensor) -> bool:
    """Whether all are numbers that single precision holds."""
    return bool((statistics.abs() <= LARGEST).all())


def unusable(batch: Any, number: int, weight: str) -> EvaluationError:
    """The error for the batch of that number (from 0), on which the layer with this weight read what is no number."""
    given = [t for t in tensors_in(batch) if t.is_floating_point()]
    for tensor in given:
        bad = (~tensor.isfinite()).reshape(len(tensor) if tensor.dim() else 1, -1).any(1).nonzero().flatten().tolist()
        if bad:
            return EvaluationError(
                f"Batch {number} of the calibration images (counted from 0) holds NaN or infinity, in {len(bad)} of "
                f"its {len(tensor) if tensor.dim() else 1} samples, the first of them sample {bad[0]}. Repair these "
                "images or leave them out."
            )
    largest = max((float(t.abs().max()) for t in given if t.numel()), default=0.0)
    return EvaluationError(
        f"The layer {weight.rpartition('.')[0] or weight!r} reads NaN, infinity or numbers too large to be squared on "
        f"batch {number} of the calibration images (counted from 0), whose largest number is {largest:.3g}. Are the "
        "images scaled as in training, and are the weights finite? Half precision may overflow."
    )
