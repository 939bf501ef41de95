"""Normalisations, scales, and element-wise functions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.random_networks.block import Block, Space, divisor, norm

INSTANCE = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


class Norm(Block):
    """A normalisation layer."""

    choices = {"how": ("batch", "plain_batch", "instance", "affine_instance", "tracked_instance", "local_response")}

    def __init__(self, space: Space, into: int, how: str):
        super().__init__(space, into)
        kinds = {
            "batch": lambda: norm(space, into),
            "plain_batch": lambda: type(norm(space, into))(into, affine=False),
            "instance": lambda: INSTANCE[space.dims](into),
            "affine_instance": lambda: INSTANCE[space.dims](into, affine=True),
            "tracked_instance": lambda: INSTANCE[space.dims](into, affine=True, track_running_stats=True),
            "local_response": lambda: nn.LocalResponseNorm(3),
        }
        self.norm = kinds[how]()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class GroupNorm(Block):
    """Group norm as a module or as a function."""

    choices = {"groups": (1, 2, 3, 4, 99), "function": (False, True)}

    def __init__(self, space: Space, into: int, groups: int, function: bool):
        super().__init__(space, into)
        self.norm, self.function = nn.GroupNorm(divisor(into, min(groups, into)), into), function

    def forward(self, x: Tensor) -> Tensor:
        if self.function:
            return F.group_norm(x, self.norm.num_groups, self.norm.weight, self.norm.bias)
        return self.norm(x)


class LayerNorm(Block):
    """Layer norm over the channels, which are moved last, or written out (ConvNeXt), or without a mean."""

    choices = {"how": ("moved", "written_out", "rms", "over_space")}

    def __init__(self, space: Space, into: int, how: str):
        super().__init__(space, into)
        self.how = how
        self.norm = nn.RMSNorm(into) if how == "rms" else nn.LayerNorm(space.size if how == "over_space" else into)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "over_space":
            return self.norm(x)
        if self.how == "written_out":
            mean = x.mean(1, keepdim=True)
            spread = (x - mean).square().mean(1, keepdim=True)
            shape = (-1,) + (1,) * self.space.dims
            return (x - mean) / (spread + 1e-3).sqrt() * self.norm.weight.view(shape) + self.norm.bias.view(shape)
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


class ResponseNorm(Block):
    """Norms over space, divided by their mean over the channels (ConvNeXt V2)."""

    def __init__(self, space: Space, into: int):
        super().__init__(space, into)
        self.gamma = nn.Parameter(torch.randn(1, into, *(1,) * space.dims))
        self.beta = nn.Parameter(torch.randn(1, into, *(1,) * space.dims))

    def forward(self, x: Tensor) -> Tensor:
        size = x.square().sum(self.space.axes, keepdim=True)
        return self.gamma * x * (size / (size.mean(1, keepdim=True) + 1e-3)) + self.beta + x


class Scale(Block):
    """Plain parameters and buffers along the channels."""

    einsum = True
    choices = {"how": ("scale", "shift", "vector", "buffer", "prelu", "position", "matrix")}

    def __init__(self, space: Space, into: int, how: str):
        super().__init__(space, into)
        self.how = how
        ones = (1,) * space.dims
        self.act = nn.PReLU(into) if how == "prelu" else nn.Identity()
        if how == "buffer":
            self.register_buffer("value", torch.rand(into, *ones) + 0.5)
        elif how == "vector":
            self.value = nn.Parameter(torch.randn(into))
        elif how == "position":
            self.value = nn.Parameter(torch.randn(1, into, *space.size))
        elif how == "matrix":
            self.value = nn.Parameter(torch.randn(into, into) / into)
        elif how != "prelu":
            self.value = nn.Parameter(torch.randn(into, *ones))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "prelu":
            return self.act(x)
        if self.how in ("shift", "position"):
            return x + self.value
        if self.how == "vector":
            return x * self.value.view(1, -1, *(1,) * self.space.dims)
        if self.how == "matrix":
            return torch.einsum("nc...,dc->nd...", x, self.value)
        return x * self.value


FUNCTIONS = {
    "relu": F.relu,
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": F.softplus,
    "hardtanh": F.hardtanh,
    "cos": torch.cos,
    "abs": torch.abs,
    "bell": lambda x: (-x * x).exp(),
    "plus_one": lambda x: x + 1,
    "rational": lambda x: x / (1 + x.abs()),
    "inverse": lambda x: 1 / (1 + x * x),
    "clamp": lambda x: x.clamp(0.1, 0.9),
    "masked": lambda x: x.masked_fill(x < -0.5, 0.25),
    "dropout": lambda x: F.dropout(x, 0.0, True),
}


class Function(Block):
    """An element-wise function, zero at zero or not."""

    choices = {"name": tuple(FUNCTIONS)}

    def __init__(self, space: Space, into: int, name: str):
        super().__init__(space, into)
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return FUNCTIONS[self.name](x)


class ByChance(Block):
    """Random numbers in train mode: values or whole channels dropped, noise, samples that skip."""

    choices = {"how": ("dropout", "channels", "alpha", "noise", "depth")}

    def __init__(self, space: Space, into: int, how: str):
        super().__init__(space, into)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how in ("dropout", "alpha"):
            return (F.dropout if self.how == "dropout" else F.alpha_dropout)(x, 0.3, self.training)
        if self.how == "channels":
            return torch.feature_dropout(x, 0.3, self.training)
        if not self.training:
            return x
        if self.how == "noise":
            return x + torch.randn_like(x)
        return x * x.new_empty(len(x), *(1,) * (x.ndim - 1)).bernoulli_(0.8).div_(0.8)


class InPlace(Block):
    """Element-wise functions in place, some on the activation that other steps read."""

    choices = {"how": ("relu", "leaky", "add_one", "mul")}

    def __init__(self, space: Space, into: int, how: str):
        super().__init__(space, into)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "relu":
            return x.relu_()
        if self.how == "leaky":
            return F.leaky_relu_(x, 0.1)
        return x.clone().add_(1) if self.how == "add_one" else x.clone().mul_(x.sigmoid())
