"""Sums over rows from which least squares follows: of inputs with themselves, and with the outputs wanted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

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

    def __add__(self, other: Moments) -> Moments:
        """The sums over the rows of both, with outputs."""
        assert self.cross is not None
        assert self.target is not None
        assert other.cross is not None
        assert other.target is not None
        return Moments(
            self.gram + other.gram, self.total + other.total, self.cross + other.cross, self.target + other.target,
            self.rows + other.rows,
        )  # fmt: skip

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

    def equation(self, start: Tensor, *, free_offset: bool) -> Equation:
        """That of the change of the matrices ``start`` (groups, features, outputs).

        ``free_offset``: a constant is made good elsewhere, by a bias or a batch norm.
        """
        assert self.cross is not None
        gram = self.covariance() if free_offset else self.gram / self.rows
        cross = self.cross_covariance() if free_offset else self.cross / self.rows
        return Equation(gram, cross - gram @ start)


class Equation(NamedTuple):
    """Least squares of changes of weights: ``gram`` E[xᵀx] (..., features, features), and ``residual``
    E[xᵀ(y - x start)] (..., features, outputs)."""

    gram: Tensor
    residual: Tensor


def damped_factor(gram: Tensor, ridge: float | Tensor) -> Tensor:
    """Cholesky factor of ``gram`` (..., n, n) + ridge · mean(diag) · I, with more ridge where rounding calls for it.

    This ends: the ridge grows tenfold, until it outweighs the rest of a row or is infinite itself.
    """
    mean = gram.diagonal(dim1=-2, dim2=-1).abs().mean(-1).clamp_min(torch.finfo(gram.dtype).tiny)
    ridge = torch.as_tensor(ridge, dtype=gram.dtype, device=gram.device).expand(mean.shape)
    while True:
        damped = gram + torch.diag_embed((ridge * mean).unsqueeze(-1).expand(gram.shape[:-1]))
        factor, info = torch.linalg.cholesky_ex(damped)
        failed = (info > 0) & ridge.isfinite()
        if not failed.any():
            return factor
        more = torch.where(mean.isfinite(), (10 * ridge).clamp_min(1e-6), math.inf)
        ridge = torch.where(failed, more, ridge)
