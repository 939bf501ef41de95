"""Pooling, interpolation and padding of space, and back to the size of all activations."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.networks.layers import CONV, TRANSPOSED
from tests.random_networks.block import WIDTHS, Block, Space, conv, norm

LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}
POOLS = {
    "max": (F.max_pool1d, F.max_pool2d, F.max_pool3d),
    "average": (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d),
    "adaptive_average": (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
    "adaptive_max": (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d),
}


class Pooled(Block):
    """Pooled and resized again."""

    choices = {"pool": tuple(POOLS), "resize": ("nearest", "linear")}

    def __init__(self, space: Space, into: int, pool: str, resize: str):
        super().__init__(space, into)
        self.pool, self.resize = pool, resize

    def forward(self, x: Tensor) -> Tensor:
        function = POOLS[self.pool][self.space.dims - 1]
        y = function(x, 1 if self.pool.startswith("adaptive") else 2)
        if self.resize == "nearest":
            return F.interpolate(y, size=x.shape[2:])
        return F.interpolate(y, x.shape[2:], mode=LINEAR[self.space.dims], align_corners=False)


class Padded(Block):
    """Space padded by a mode, and a convolution that takes the border away again."""

    choices = {"mode": ("constant", "replicate", "reflect", "circular"), "out": WIDTHS, "value": (0.0, 0.5)}

    def __init__(self, space: Space, into: int, mode: str, out: int, value: float):
        super().__init__(space, out)
        self.conv, self.mode, self.value = CONV[space.dims](into, out, 3), mode, value

    def forward(self, x: Tensor) -> Tensor:
        value = self.value if self.mode == "constant" else None
        return self.conv(F.pad(x, (1, 1) * self.space.dims, self.mode, value))


class Hourglass(Block):
    """Down by a stride, up by a transposed convolution, the input next to it (U-Net)."""

    choices = {"out": WIDTHS, "joined": ("cat", "add")}

    def __init__(self, space: Space, into: int, out: int, joined: str):
        super().__init__(space, into)
        self.down, self.norm = CONV[space.dims](into, out, 2, 2), norm(space, out)
        self.up, self.joined = TRANSPOSED[space.dims](out, into, 2, 2), joined
        self.last = conv(space, 2 * into if joined == "cat" else into, into, 1)

    def forward(self, x: Tensor) -> Tensor:
        up = self.up(self.norm(self.down(x)).relu())
        return self.last(torch.cat([up, x], 1) if self.joined == "cat" else up + x)


class Pyramid(Block):
    """The input next to itself pooled by growing windows (SPPF)."""

    choices = {"out": WIDTHS}

    def __init__(self, space: Space, into: int, out: int):
        super().__init__(space, out)
        self.one = conv(space, into, 4, 1)
        self.two = conv(space, 12, out, 1)
        self.pool = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}[space.dims](3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.one(x)
        b = self.pool(a)
        return self.two(torch.cat([a, b, self.pool(b)], 1))
