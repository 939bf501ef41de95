"""Normalisations with and without affine parameters and running statistics."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

from tests.networks.layers import CONV, Between
from tests.networks.registry import add, network

for name, build in {
    "batch": lambda: nn.BatchNorm2d(8),
    "batch_no_affine": lambda: nn.BatchNorm2d(8, affine=False),
    "batch_no_statistics": lambda: nn.BatchNorm2d(8, track_running_stats=False),
    "batch_bare": lambda: nn.BatchNorm2d(8, affine=False, track_running_stats=False),
    "sync_batch": lambda: nn.SyncBatchNorm(8),
    "frozen_batch": lambda: FrozenBatchNorm2d(8),
    "instance": lambda: nn.InstanceNorm2d(8),
    "instance_affine": lambda: nn.InstanceNorm2d(8, affine=True),
    "instance_statistics": lambda: nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
}.items():
    # SyncBatchNorm refuses to train on a CPU, and so does the dense network.
    add(f"norm_{name}", "norms", lambda build=build: Between(build()), trains=name != "sync_batch")
add("norm_local_response", "norms", lambda: Between(nn.LocalResponseNorm(3)), kept=("head", "first"))
for name, groups in {"of_one": 1, "of_two": 4, "of_halves": 2}.items():
    add(
        f"norm_group_{name}",
        "norms",
        lambda groups=groups: Between(nn.GroupNorm(groups, 8)),
        counted=("first",),
    )
add(
    "norm_group_no_affine",
    "norms",
    lambda: Between(nn.GroupNorm(2, 8, affine=False)),
    counted=("first",),
)
add("norm_group_by_channel", "norms", lambda: Between(nn.GroupNorm(8, 8)))


class LayerNormChannels(nn.Module):
    """ConvNeXt's layer norm over the channels of (N, C, H, W)."""

    def __init__(self, width: int, affine: bool = True):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class HandWrittenLayerNorm(nn.Module):
    """Layer norm over channels from means and raw parameters, as published with ConvNeXt."""

    def __init__(self, width: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(1, keepdim=True)
        x = x / (x.pow(2).mean(1, keepdim=True) + 1e-6).sqrt()
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class FunctionalLayerNorm(nn.Module):
    """F.layer_norm told its shape from a stored number, which is wrong for fewer channels."""

    def __init__(self, width: int):
        super().__init__()
        self.shape, self.weight = (width,), nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.permute(0, 2, 3, 1), self.shape, self.weight).permute(0, 3, 1, 2)


for name, build in {
    "layer": lambda: LayerNormChannels(8),
    "layer_no_affine": lambda: LayerNormChannels(8, affine=False),
    "layer_by_hand": lambda: HandWrittenLayerNorm(8),
    "layer_over_volume": lambda: nn.LayerNorm([8, 8, 8]),
    "rms": lambda: nn.Sequential(Permute(0, 2, 3, 1), nn.RMSNorm(8), Permute(0, 3, 1, 2)),
}.items():
    add(f"norm_{name}", "norms", lambda build=build: Between(build()), counted=("first",))
add("norm_layer_functional", "norms", lambda: Between(FunctionalLayerNorm(8)), counted=("first",))
add("norm_layer_over_space", "norms", lambda: Between(nn.LayerNorm([8, 8])))


class GroupDeviation(nn.Module):
    """EvoNorm-S0: a gate divided by the deviation of runs of channels, which is expanded by the sizes of the input."""

    def __init__(self, width: int, groups: int, like: bool = False):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.groups, self.like = groups, like

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        runs = x.reshape(b, self.groups, c // self.groups, h, w)
        deviation = runs.var(dim=(2, 3, 4), unbiased=False, keepdim=True).add(1e-5).sqrt()
        deviation = deviation.expand_as(runs) if self.like else deviation.expand(runs.shape)
        gated = x * x.sigmoid() / deviation.reshape(b, c, h, w)
        return gated * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)


for like in (False, True):
    add(
        f"norm_group_deviation{'_like' * like}",
        "norms",
        lambda like=like: Between(GroupDeviation(8, 2, like)),
        inexact=("first",),
    )


class Permute(nn.Module):
    """Permutes the axes."""

    def __init__(self, *axes: int):
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.axes)


class BatchNormOf(nn.Module):
    """Convolution and batch norm in 1 or 3 dimensions."""

    def __init__(self, dims: int, norm: nn.Module):
        super().__init__()
        self.first, self.norm, self.head = CONV[dims](3, 8, 3), norm, CONV[dims](8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.first(x)).relu())


add("norm_batch_1d", "norms", lambda: BatchNormOf(1, nn.BatchNorm1d(8)), shapes=((2, 3, 9),))
add("norm_batch_3d", "norms", lambda: BatchNormOf(3, nn.BatchNorm3d(8)), shapes=((2, 3, 5, 5, 5),))
add("norm_instance_1d", "norms", lambda: BatchNormOf(1, nn.InstanceNorm1d(8, affine=True)), shapes=((2, 3, 9),))
add("norm_instance_3d", "norms", lambda: BatchNormOf(3, nn.InstanceNorm3d(8)), shapes=((2, 3, 5, 5, 5),))


@network("norms")
class PreActivation(nn.Module):
    """Batch norm before the convolution, after a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 6, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(14), nn.Conv2d(14, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(torch.cat([self.a(x), self.b(x)], 1)).relu())


@network("norms", smaller=("mean", "var", "scale", "shift"))
class BatchNormInBuffers(nn.Module):
    """Frozen batch norm by plain arithmetic on buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        for name, value in {"mean": 0.1, "var": 1.0, "scale": 1.0, "shift": 0.0}.items():
            self.register_buffer(name, torch.full((8,), value))

    def forward(self, x: Tensor) -> Tensor:
        x, scale = self.first(x), self.scale * (self.var + 1e-5).rsqrt()
        shift = self.shift - self.mean * scale
        return self.head((x * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)).relu())


@network("norms")
class SharedBatchNorm(nn.Module):
    """One batch norm module normalises two convolutions, which ties them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.head_a, self.head_b = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.head_a(self.norm(self.a(x))) + self.head_b(self.norm(self.b(x))))


@network("norms", counted=("embed",))
class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, layer norm on channels last, linear layers, layer scale, residual."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.depthwise = nn.Conv2d(3, 8, 2, 2), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 32), nn.Linear(32, 8)
        self.gamma, self.head = nn.Parameter(torch.full((8,), 1e-6)), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.gamma * self.down(F.gelu(self.up(y)))
        return self.head((x + y.permute(0, 3, 1, 2)).mean((2, 3)))
