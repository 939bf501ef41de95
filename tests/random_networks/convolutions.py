"""Convolutions of every kind, alone and as the blocks that networks are made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.networks.layers import CONV, TRANSPOSED
from tests.random_networks.block import MOST, WIDTHS, Block, Space, conv, divisor, fit, multiple, norm


class Conv(Block):
    """Convolution, batch norm, ReLU in place."""

    choices = {"out": WIDTHS, "kernel": (1, 3), "bias": (False, True)}

    def __init__(self, space: Space, into: int, out: int, kernel: int, bias: bool):
        super().__init__(space, out)
        self.conv, self.norm, self.act = conv(space, into, out, kernel, bias=bias), norm(space, out), nn.ReLU(True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


class Grouped(Block):
    """A grouped convolution with as many groups as both widths allow."""

    choices = {"out": WIDTHS, "groups": (2, 3, 4), "bias": (False, True)}

    def __init__(self, space: Space, into: int, out: int, groups: int, bias: bool):
        wide = multiple(into, groups)
        super().__init__(space, multiple(out, groups))
        self.fit = fit(space, into, wide)
        self.conv = conv(space, wide, self.width, groups=groups, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.fit(x)).relu()


class Depthwise(Block):
    """A depthwise convolution with a multiplier."""

    choices = {"multiplier": (1, 2, 3), "bias": (False, True)}

    def __init__(self, space: Space, into: int, multiplier: int, bias: bool):
        narrow = min(into, MOST)
        super().__init__(space, narrow * multiplier)
        self.fit = fit(space, into, narrow)
        self.conv = conv(space, narrow, self.width, groups=narrow, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.fit(x))


class Transposed(Block):
    """A transposed convolution in groups, perhaps depthwise, perhaps down and up again."""

    choices = {"out": WIDTHS, "groups": (1, 2, 3, 99), "stride": (1, 2), "bias": (False, True)}

    def __init__(self, space: Space, into: int, out: int, groups: int, stride: int, bias: bool):
        narrow = min(into, MOST)
        groups = divisor(narrow, min(groups, narrow))
        super().__init__(space, multiple(out, groups))
        self.fit = fit(space, into, narrow)
        self.down = CONV[space.dims](narrow, narrow, stride, stride) if stride > 1 else nn.Identity()
        kernel, padding = (2, 0) if stride > 1 else (3, 1)
        self.up = TRANSPOSED[space.dims](narrow, self.width, kernel, stride, padding, groups=groups, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(self.fit(x)))


class Residual(Block):
    """A basic block, the shortcut added in place or not."""

    choices = {"out": WIDTHS, "in_place": (False, True)}

    def __init__(self, space: Space, into: int, out: int, in_place: bool):
        super().__init__(space, into)
        self.one, self.two, self.in_place = conv(space, into, out, bias=False), conv(space, out, into), in_place
        self.norms = nn.ModuleList([norm(space, out), norm(space, into)])

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[1](self.two(self.norms[0](self.one(x)).relu_()))
        if self.in_place:
            y += x
            return y.relu_()
        return (x + y).relu()


class InvertedResidual(Block):
    """Expand, depthwise, project, shortcut."""

    choices = {"out": WIDTHS}

    def __init__(self, space: Space, into: int, out: int):
        super().__init__(space, into)
        self.expand, self.project = conv(space, into, out, 1, bias=False), conv(space, out, into, 1, bias=False)
        self.depthwise, self.norm = conv(space, out, out, groups=out, bias=False), norm(space, out)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(nn.functional.hardswish(self.norm(self.depthwise(self.expand(x)))))


class Ghost(Block):
    """Half of the channels from a convolution, the others cheaply from these, cut to a constant number."""

    choices = {"out": WIDTHS}

    def __init__(self, space: Space, into: int, out: int):
        super().__init__(space, out)
        half = -(-out // 2)
        self.primary, self.cheap = conv(space, into, half, 1), conv(space, half, half, groups=half)

    def forward(self, x: Tensor) -> Tensor:
        y = self.primary(x)
        return torch.cat([y, self.cheap(y)], 1)[:, : self.width]


class Inception(Block):
    """Branches of different kernels one after another."""

    choices = {"out": WIDTHS, "branches": (2, 3)}

    def __init__(self, space: Space, into: int, out: int, branches: int):
        super().__init__(space, out * branches)
        self.branches = nn.ModuleList(conv(space, into, out, 1 + 2 * (k % 2)) for k in range(branches))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x).relu() for branch in self.branches], 1)


class Reparametrised(Block):
    """Branches added up: a convolution, a pointwise one and the input's batch norm (RepVGG)."""

    choices = {"groups": (1, 2, 3)}

    def __init__(self, space: Space, into: int, groups: int):
        super().__init__(space, into)
        groups = divisor(into, groups)
        self.three, self.one = conv(space, into, into, groups=groups), conv(space, into, into, 1, groups=groups)
        self.skip = norm(space, into)

    def forward(self, x: Tensor) -> Tensor:
        return sum((self.three(x), self.one(x)), self.skip(x))
