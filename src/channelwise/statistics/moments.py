"""Sums over rows from which least squares follows: of inputs with themselves, and with the outputs wanted."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from channelwise.tensors import at_least_single, widest


@dataclass(eq=False)
class Moments:
    """Sums over the rows of x (groups, rows, features), and of y (groups, rows, outputs) where y is given too.

    ``gram`` (groups, features, features) is the sum of xᵀx, ``cross`` (groups, features, outputs) that of xᵀy.
    """

    gram: Tensor
    total: Tensor
    cross: Tensor | None = None
    target: Tensor | None = None
    rows: int = 0

    @classmethod
    def zeros(cls, groups: int, features: int, outputs: int | None, device: torch.device) -> Moments:
        def empty(*shape: int) -> Tensor:
            return torch.zeros(groups, *shape, device=device, dtype=widest(device))

        if outputs is None:
            return cls(empty(features, features), empty(features))
        return cls(empty(features, features), empty(features), empty(features, outputs), empty(outputs))

    def add(self, x: Tensor, y: Tensor | None = None) -> None:
        """Count rows in."""
        x = at_least_single(x)
        self.gram += x.transpose(1, 2) @ x
        self.total += x.sum(1)
        self.rows += x.shape[1]
        if y is not None:
            assert self.cross is not None
            assert self.target is not None
            y = at_least_single(y)
            self.cross += x.transpose(1, 2) @ y
            self.target += y.sum(1)

    def power(self) -> Tensor:
        """The largest sum of squares of a feature, a scalar: not finite if anything that was added is not.

        No sum of products can be larger.
        """
        return self.gram.diagonal(dim1=1, dim2=2).max()

    def covariance(self) -> Tensor:
        """Mean of xᵀx about the mean of x: (groups, features, features)."""
        return (self.gram - self.total.unsqueeze(2) * self.total.unsqueeze(1) / self.rows) / self.rows

    def cross_covariance(self) -> Tensor:
        """Mean of xᵀy about the means of x and y: (groups, features, outputs)."""
        assert self.cross is not None
        assert self.target is not None
        return (self.cross - self.total.unsqueeze(2) * self.target.unsqueeze(1) / self.rows) / self.rows


def damped_factor(gram: Tensor, ridge: float) -> Tensor:
    """Cholesky factor of ``gram`` + ridge · mean(diag) · I, with more of a ridge where rounding calls for it.

    This ends: the ridge grows tenfold, until it outweighs the rest of a row or is infinite itself.
    """
    mean = gram.diagonal().abs().mean().clamp_min(torch.finfo(gram.dtype).tiny)
    while True:
        damped = gram.clone()
        damped.diagonal().add_(ridge * mean)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not failed or not math.isfinite(ridge):
            return factor
        ridge = max(10 * ridge, 1e-6) if mean.isfinite() else math.inf
