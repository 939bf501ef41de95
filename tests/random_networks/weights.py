"""Weights that are computed, shared or tied."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from tests.networks.weights import Scaled, Symmetric
from tests.random_networks.block import WIDTHS, Block, Space, conv

FUNCTIONAL = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class Parametrised(Block):
    """A convolution with a parametrised weight."""

    choices = {"out": WIDTHS, "how": ("weight_norm", "spectral_norm", "symmetric", "scaled", "standardised")}

    def __init__(self, space: Space, into: int, out: int, how: str):
        super().__init__(space, out)
        self.conv, self.how = conv(space, into, out), how
        self.gain = nn.Parameter(torch.ones(out, *(1,) * (space.dims + 1))) if how == "standardised" else None
        if how == "weight_norm":
            parametrizations.weight_norm(self.conv)
        elif how == "spectral_norm":
            parametrizations.spectral_norm(self.conv)
        elif how == "symmetric":
            parametrize.register_parametrization(self.conv, "weight", Symmetric())
        elif how == "scaled":
            parametrize.register_parametrization(self.conv, "weight", ScaledKernel(out, space.dims))

    def forward(self, x: Tensor) -> Tensor:
        if self.gain is None:
            return self.conv(x)
        weight = self.conv.weight
        var, mean = torch.var_mean(weight, tuple(range(1, weight.ndim)), keepdim=True, correction=0)
        weight = (weight - mean) * torch.rsqrt(var + 1e-3) * self.gain
        return FUNCTIONAL[self.space.dims](x, weight, self.conv.bias, padding=1)


class ScaledKernel(Scaled):
    """One scale for every output channel, for kernels of any dimension."""

    def __init__(self, out: int, dims: int):
        super().__init__(out)
        self.scale = nn.Parameter(torch.rand(out, *(1,) * (dims + 1)) + 0.5)


class Twice(Block):
    """One module called twice."""

    def __init__(self, space: Space, into: int):
        super().__init__(space, into)
        self.conv = conv(space, into, into)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.conv(x).relu())


class Tied(Block):
    """Two modules with one weight, or one weight there and back."""

    choices = {"how": ("conv", "back", "bias"), "out": WIDTHS}

    def __init__(self, space: Space, into: int, how: str, out: int):
        super().__init__(space, into)
        self.how = how
        self.a, self.b = conv(space, into, into, 1), conv(space, into, into, 1)
        if how == "conv":
            self.b.weight = self.a.weight
        elif how == "bias":
            self.b.bias = self.a.bias
        self.weight = nn.Parameter(torch.randn(out, into) / into) if how == "back" else None

    def forward(self, x: Tensor) -> Tensor:
        if self.weight is not None:
            y = F.linear(F.linear(x.movedim(1, -1), self.weight).relu(), self.weight.t())
            return y.movedim(-1, 1)
        return self.b(self.a(x).tanh())


class Experts(Block):
    """A kernel mixed of several by weights that are learnt, or by the input (CondConv)."""

    einsum = True
    choices = {"out": WIDTHS, "routed": (False, True)}

    def __init__(self, space: Space, into: int, out: int, routed: bool):
        super().__init__(space, out)
        self.kernels = nn.Parameter(torch.randn(2, out, into, *(1,) * space.dims))
        self.share, self.route = nn.Parameter(torch.randn(2)), nn.Linear(into, 2)
        self.routed = routed

    def forward(self, x: Tensor) -> Tensor:
        function = FUNCTIONAL[self.space.dims]
        if not self.routed:
            return function(x, torch.einsum("e,e...->...", self.share.softmax(0), self.kernels))
        share = self.route(x.mean(self.space.axes)).sigmoid()
        n, c = x.shape[:2]
        weight = (share @ self.kernels.flatten(1)).view(-1, c, *(1,) * self.space.dims)
        y = function(x.reshape(1, n * c, *x.shape[2:]), weight, groups=n)
        return y.view(n, -1, *x.shape[2:])
