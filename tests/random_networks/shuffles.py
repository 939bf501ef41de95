"""Steps that move channels around: shuffles, pixel shuffles, flips, rolls, windows."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.random_networks.block import MOST, Block, Space, divisor, fit, multiple


class Shuffle(Block):
    """A channel shuffle, written with sizes of the tensor, with attributes, or as a module."""

    choices = {"groups": (2, 3, 4), "how": ("view", "attribute", "unflatten", "function")}

    def __init__(self, space: Space, into: int, groups: int, how: str):
        super().__init__(space, into)
        self.how, self.groups = how, divisor(into, min(groups, into))
        self.each = into // self.groups

    def forward(self, x: Tensor) -> Tensor:
        n, c, *space = x.shape
        if self.how == "function":
            return F.channel_shuffle(x, self.groups)
        if self.how == "unflatten":
            return x.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)
        each = self.each if self.how == "attribute" else c // self.groups
        return x.view(n, self.groups, each, *space).transpose(1, 2).reshape(n, -1, *space)


class ShuffleUnit(Block):
    """Half of the channels convolved, both halves shuffled together (ShuffleNet V2)."""

    def __init__(self, space: Space, into: int):
        wide = multiple(into, 2)
        super().__init__(space, wide)
        half = wide // 2
        self.fit = fit(space, into, wide)
        self.one = nn.Sequential(fit(space, half, half + 1), fit(space, half + 1, half))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.fit(x).chunk(2, 1)
        x = torch.cat([a, self.one(b)], 1)
        n, c, *space = x.shape
        return x.view(n, 2, c // 2, *space).transpose(1, 2).contiguous().view(n, c, *space)


class PixelShuffle(Block):
    """Channels to space or space to channels, and back to the size of all activations."""

    dims = (2,)
    choices = {"how": ("shuffle", "unshuffle", "focus", "written_out")}

    def __init__(self, space: Space, into: int, how: str):
        up = how in ("shuffle", "written_out")
        wide = multiple(into, 4) if up else min(into, MOST // 2)
        super().__init__(space, wide // 4 if up else wide * 4)
        self.how, self.fit = how, fit(space, into, wide)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fit(x)
        if self.how == "shuffle":
            return F.avg_pool2d(F.pixel_shuffle(x, 2), 2)
        if self.how == "unshuffle":
            return F.interpolate(F.pixel_unshuffle(x, 2), scale_factor=2)
        if self.how == "written_out":
            n, c, h, w = x.shape
            y = x.view(n, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // 4, 2 * h, 2 * w)
            return F.max_pool2d(y, 2)
        parts = [x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]
        return F.interpolate(torch.cat(parts, 1), size=self.space.size)


class Moved(Block):
    """Channels in reverse, rotated, or turned in space."""

    choices = {"how": ("flip", "roll", "half_roll", "roll_space", "flip_space")}

    def __init__(self, space: Space, into: int, how: str):
        super().__init__(space, into)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "flip":
            return x.flip(1)
        if self.how == "roll":
            return x.roll(1, 1)
        if self.how == "half_roll":
            return x.roll(x.shape[1] // 2, 1)
        return x.roll(1, -1) if self.how == "roll_space" else x.flip(2)


class Windows(Block):
    """Neighbourhoods as channels, left so, weighed, or put together again."""

    dims = (2,)
    choices = {"how": ("unfold", "attended", "folded")}

    def __init__(self, space: Space, into: int, how: str):
        narrow = min(into, 5)
        super().__init__(space, narrow * (9 if how == "unfold" else 1))
        self.how, self.fit = how, fit(space, into, narrow)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fit(x)
        n, c, h, w = x.shape
        columns = F.unfold(x, 3, padding=1)
        if self.how == "unfold":
            return columns.view(n, -1, h, w)
        if self.how == "folded":
            return F.fold(columns.tanh(), (h, w), 3, padding=1)
        return (columns.view(n, c, 9, h, w) * x.unsqueeze(2)).sum(2).tanh()


class Gathered(Block):
    """Every channel picks pixels of its own; how many channels there are is read, known, or seen by the index."""

    choices = {"how": ("sorted", "read", "attribute")}

    def __init__(self, space: Space, into: int, how: str):
        super().__init__(space, into)
        self.how, self.width = how, into

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "sorted":
            return x.gather(-1, x.argsort(-1))
        places = torch.arange(x.shape[-1] - 1, -1, -1, device=x.device)
        width = self.width if self.how == "attribute" else x.shape[1]
        return x.gather(-1, places.expand(x.shape[0], width, *x.shape[2:]))


class Maxout(Block):
    """The largest of neighbouring channels."""

    choices = {"attribute": (False, True)}

    def __init__(self, space: Space, into: int, attribute: bool):
        wide = multiple(into, 2)
        super().__init__(space, wide // 2)
        self.fit, self.half = fit(space, into, wide), (wide // 2 if attribute else None)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fit(x)
        return x.view(x.shape[0], self.half or x.shape[1] // 2, 2, *x.shape[2:]).amax(2)
