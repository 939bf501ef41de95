"""Building bricks shared by the small networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def conv_bn(into: int, out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(into, out, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(out), nn.ReLU(True)
    )


class Between(nn.Module):
    """A convolution ``first`` with batch norm, an operation, and a convolution ``head`` that gives the outputs."""

    def __init__(
        self, op: nn.Module | Callable[[Tensor], Tensor], width: int = 8, after: int | None = None, dims: int = 2
    ):
        super().__init__()
        self.first = CONV[dims](3, width, 3, padding=1)
        self.norm = NORM[dims](width)
        self.op: Any = op
        self.head = CONV[dims](after or width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.op(self.norm(self.first(x))))


class BetweenLinear(nn.Module):
    """A convolution ``first`` with batch norm, an operation, and a linear layer ``head`` on its last axis."""

    def __init__(self, op: nn.Module | Callable[[Tensor], Tensor], after: int, width: int = 8, dims: int = 2):
        super().__init__()
        self.first = CONV[dims](3, width, 3, padding=1)
        self.norm = NORM[dims](width)
        self.op: Any = op
        self.head = nn.Linear(after, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.op(self.norm(self.first(x))))


class Pair(nn.Module):
    """Two convolutions ``a`` and ``b`` of the input, joined by an operation of both, and ``head``."""

    def __init__(self, op: Callable[[Tensor, Tensor], Tensor], after: int, a: int = 8, b: int = 8):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, a, 3, padding=1), nn.Conv2d(3, b, 3, padding=1)
        self.op = op
        self.head = nn.Conv2d(after, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.op(self.a(x), self.b(x)))
