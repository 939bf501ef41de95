"""Regularised least squares: new weights for the inputs that a layer still has."""

from __future__ import annotations

import torch
from torch import Tensor

from channelwise.statistics.moments import damped_factor
from channelwise.tensors import widest

RIDGE = 1e-3
"""Strength of the pull towards the weights as they were, relative to the mean power of an input."""


def improved(start: Tensor, gram: Tensor, residual: Tensor, ridge: float = RIDGE) -> Tensor:
    """The matrix M (features, outputs) that minimises E|x M - y|² + ridge · mean(diag(gram)) · |M - start|².

    No output's error on the data is larger than with ``start``: where rounding would make it so, ``start`` stays.

    Arguments:
        gram: E[xᵀx], (features, features).
        residual: E[xᵀ(y - x start)], (features, outputs).
    """
    kind = widest(gram.device)
    start, gram, residual = start.to(kind), gram.to(kind), residual.to(kind)
    factor = damped_factor(gram, ridge)
    change = torch.cholesky_solve(residual, factor)
    # E|x (start + change) - y|² - E|x start - y|², by output.
    growth = (change * (gram @ change - 2 * residual)).sum(0)
    return torch.where((growth <= 0) & change.isfinite().all(0), start + change, start)
