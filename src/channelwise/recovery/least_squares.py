"""Regularised least squares: new weights for the inputs that a layer still has."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from channelwise.statistics.moments import Equation, damped_factor
from channelwise.tensors import widest

RIDGE = 1e-3
"""Strength of the pull towards the weights as they were, relative to the mean power of an input."""

RIDGES = (1e-3, 3e-2, 1.0)
"""Strengths that are tried where samples are held out to choose by."""


def improved(start: Tensor, gram: Tensor, residual: Tensor, ridge: float | Tensor = RIDGE) -> Tensor:
    """The matrix M (features, outputs) that minimises E|x M - y|² + ridge · mean(diag(gram)) · |M - start|².

    No output's error on the data is larger than with ``start``: where rounding would make it so, ``start`` stays.

    Arguments:
        start: (..., features, outputs); many are solved at once.
        gram: E[xᵀx], (..., features, features).
        residual: E[xᵀ(y - x start)], (..., features, outputs).
        ridge: one for all, or (...) of them.
    """
    kind = widest(gram.device)
    start, gram, residual = start.to(kind), gram.to(kind), residual.to(kind)
    change = torch.cholesky_solve(residual, damped_factor(gram, ridge))
    # E|x (start + change) - y|² - E|x start - y|², by output.
    growth = (change * (gram @ change - 2 * residual)).sum(-2, keepdim=True)
    return torch.where((growth <= 0) & change.isfinite().all(-2, keepdim=True), start + change, start)


def validated(
    start: Tensor, fit: Equation, held: Equation, whole: Equation, ridges: Sequence[float] = RIDGES
) -> Tensor:
    """The matrices `improved` from all samples, with what samples that a fit did not see say of its ridge and length.

    A fit to ``fit`` goes as far towards its answer as serves ``held`` best, by the ridge that serves it best. The fit
    to ``whole`` is taken as far. Where none serves, ``start`` (groups, features, outputs) stays.
    """
    gain, ridge, length = start.new_zeros(3, len(start))
    for strength in ridges:
        change = improved(start, *fit, strength) - start
        # |held error| of a part t of the change, less that of none: t² square - 2 t along.
        square = (change * (held.gram @ change)).sum((1, 2))
        along = (change * held.residual).sum((1, 2))
        part = (along / square).nan_to_num(0.0, 0.0, 0.0).clamp(0, 1)
        gained = part * (2 * along - part * square)
        better = gained > gain
        gain = torch.where(better, gained, gain)
        ridge, length = ridge.masked_fill(better, strength), torch.where(better, part, length)
    fitted = improved(start, *whole, ridge)
    return torch.where((gain > 0)[:, None, None], start + length[:, None, None] * (fitted - start), start)
