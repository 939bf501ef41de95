"""What every step of a random network is: a module made for given widths, which says how many channels it returns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from tests.networks.layers import CONV, NORM

WIDTHS = (4, 8, 6, 5, 7, 12, 3, 2, 9, 11)
"""Numbers of channels to draw from, those of small counterexamples first; odd ones and primes among them."""

MOST = 24
"""Blocks that return more channels than they read narrow their input to this width first."""

BLOCKS: dict[str, type[Block]] = {}


@dataclass(frozen=True)
class Space:
    """The spatial size of all activations; even along every axis, so that they can be halved and doubled."""

    size: tuple[int, ...]

    @property
    def dims(self) -> int:
        return len(self.size)

    @property
    def positions(self) -> int:
        return math.prod(self.size)

    @property
    def axes(self) -> tuple[int, ...]:
        return tuple(range(2, 2 + self.dims))


class Block(nn.Module):
    """``inputs`` activations (N, C, *space) to one of ``width`` channels; ``choices`` are the values of its options.

    ``einsum``: it calls torch.einsum, which multiplies element by element where an axis that it sums over has length 1.
    """

    inputs: ClassVar[int] = 1
    dims: ClassVar[tuple[int, ...]] = (1, 2, 3)
    choices: ClassVar[dict[str, Sequence[Any]]] = {}
    einsum: ClassVar[bool] = False

    def __init__(self, space: Space, width: int):
        super().__init__()
        self.space, self.width = space, width

    def __init_subclass__(cls, abstract: bool = False) -> None:
        if not abstract:
            BLOCKS[cls.__name__] = cls


def conv(space: Space, into: int, out: int, kernel: int = 3, **options: Any) -> nn.Module:
    """A convolution that keeps the spatial size."""
    return CONV[space.dims](into, out, kernel, padding=kernel // 2, **options)


def norm(space: Space, width: int) -> nn.Module:
    """A batch norm."""
    return NORM[space.dims](width)


def fit(space: Space, into: int, out: int) -> nn.Module:
    """Nothing where the widths agree already, so that constraints meet directly; a projection elsewhere."""
    return nn.Identity() if into == out else conv(space, into, out, 1)


def multiple(width: int, of: int, most: int = 2 * MOST) -> int:
    """The width itself if it can be divided, else the next that can."""
    return min(-(-width // of), max(most // of, 1)) * of


def divisor(number: int, most: int) -> int:
    """The largest divisor up to ``most``."""
    return max(d for d in range(1, most + 1) if number % d == 0)


def pooled(x: Tensor, keepdim: bool = False) -> Tensor:
    """The mean over space: (N, C), or (N, C, 1, …)."""
    return x.mean(tuple(range(2, x.ndim)), keepdim=keepdim)


def spread(vector: Tensor, like: Tensor) -> Tensor:
    """(N, C) as (N, C, 1, …)."""
    return vector[(...,) + (None,) * (like.ndim - 2)]
