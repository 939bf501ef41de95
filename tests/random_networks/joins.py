"""Steps in which activations meet: sums, products, concatenations, stacks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.random_networks.block import MOST, Block, Space, conv, fit, pooled, spread


class Pair(Block, abstract=True):
    """Two activations of equal width; the second is projected where it is not."""

    inputs = 2

    def __init__(self, space: Space, a: int, b: int):
        super().__init__(space, a)
        self.project = fit(space, b, a)


class Add(Pair):
    """A sum, in place on a copy or not."""

    choices = {"in_place": (False, True)}

    def __init__(self, space: Space, a: int, b: int, in_place: bool):
        super().__init__(space, a, b)
        self.in_place = in_place

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a.clone().add_(self.project(b)) if self.in_place else a + self.project(b)


class Mul(Pair):
    """A product of two branches, one of them perhaps squashed."""

    choices = {"how": ("plain", "sigmoid", "tanh")}

    def __init__(self, space: Space, a: int, b: int, how: str):
        super().__init__(space, a, b)
        self.how = how

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        b = self.project(b)
        return a * (b if self.how == "plain" else getattr(torch, self.how)(b))


class Mix(Pair):
    """A weighted mean by learnt scalars, a maximum, or a choice by sign."""

    choices = {"how": ("lerp", "maximum", "where", "addcmul")}

    def __init__(self, space: Space, a: int, b: int, how: str):
        super().__init__(space, a, b)
        self.how, self.share = how, nn.Parameter(torch.tensor(0.3))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        b = self.project(b)
        if self.how == "lerp":
            return torch.lerp(a, b, self.share)
        if self.how == "maximum":
            return torch.maximum(a, b)
        if self.how == "addcmul":
            return torch.addcmul(a, b, a.sigmoid(), value=0.5)
        return torch.where(a > 0, a, b)


class Cat(Block):
    """Two activations one after the other, the first perhaps twice."""

    inputs = 2
    choices = {"twice": (False, True)}

    def __init__(self, space: Space, a: int, b: int, twice: bool):
        narrow = min(a, MOST), min(b, MOST)
        super().__init__(space, narrow[0] * (1 + twice) + narrow[1])
        self.fits = nn.ModuleList(fit(space, wide, n) for wide, n in zip((a, b), narrow, strict=True))
        self.twice = twice

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = self.fits[0](a), self.fits[1](b)
        return torch.cat([a, b, a.relu()] if self.twice else [a, b], 1)


class CatConstant(Block):
    """Constants, coordinates and the mean next to the channels."""

    choices = {"first": (False, True)}

    def __init__(self, space: Space, into: int, first: bool):
        super().__init__(space, into + 2)
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        place = torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype).expand_as(x[:, :1])
        extra = [place, x.mean(1, keepdim=True)]
        return torch.cat([*extra, x] if self.first else [x, *extra], 1)


class Stack(Pair):
    """Two activations stacked, then merged with the channels or reduced."""

    choices = {"how": ("one_by_one", "interleaved", "sum", "max")}

    def __init__(self, space: Space, a: int, b: int, how: str):
        super().__init__(space, a, b)
        self.how, narrow = how, min(a, MOST)
        self.narrow = fit(space, a, narrow)
        self.width = narrow * (2 if how in ("one_by_one", "interleaved") else 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = self.narrow(a), self.narrow(self.project(b))
        if self.how == "interleaved":
            return torch.stack([a, b], 2).flatten(1, 2)
        if self.how == "one_by_one":
            n, c = a.shape[:2]
            return torch.stack([a, b], 1).reshape(n, 2 * c, *a.shape[2:])
        both = torch.stack([a, b])
        return both.sum(0) if self.how == "sum" else both.amax(0)


class Film(Block):
    """The second activation gives a scale and a shift for every channel of the first."""

    inputs = 2
    choices = {"attribute": (False, True)}

    def __init__(self, space: Space, a: int, b: int, attribute: bool):
        super().__init__(space, a)
        self.linear, self.features, self.attribute = nn.Linear(b, 2 * a), a, attribute

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        both = self.linear(pooled(b))
        scale, shift = both.split(self.features, 1) if self.attribute else both.chunk(2, 1)
        return a * (1 + spread(scale, a)) + spread(shift, a)


class Selective(Pair):
    """Two branches weighted by a softmax over the branches for every channel (SKNet)."""

    choices = {"attribute": (False, True)}

    def __init__(self, space: Space, a: int, b: int, attribute: bool):
        super().__init__(space, a, b)
        self.squeeze, self.excite = nn.Linear(a, 3), nn.Linear(3, 2 * a)
        self.channels, self.attribute = a, attribute

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        b = self.project(b)
        vector = self.excite(self.squeeze(pooled(a + b)).relu())
        shape = (-1, 2, self.channels) if self.attribute else (vector.shape[0], 2, -1)
        share = vector.view(shape).softmax(1)
        return a * spread(share[:, 0], a) + b * spread(share[:, 1], b)


class Correlated(Block):
    """A spatial weight from the sum of products over the channels of two activations."""

    inputs = 2

    def __init__(self, space: Space, a: int, b: int):
        super().__init__(space, a)
        self.query, self.key = conv(space, a, 5, 1), conv(space, b, 5, 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a * (self.query(a) * self.key(b)).sum(1, keepdim=True).sigmoid() + 0 * b.sum()
