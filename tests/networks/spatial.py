"""Pooling, interpolation, padding of space and of channels, pixel and channel shuffles."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.networks.layers import Between, Pair
from tests.networks.registry import add, network

POOLING = {
    "max": nn.MaxPool2d(3, 2, 1),
    "max_ceil": nn.MaxPool2d(3, 2, ceil_mode=True),
    "max_dilated": nn.MaxPool2d(2, 1, dilation=2),
    "average": nn.AvgPool2d(3, 2, 1),
    "average_not_counting": nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "adaptive_average": nn.AdaptiveAvgPool2d((2, 3)),
    "adaptive_average_one": nn.AdaptiveAvgPool2d(1),
    "adaptive_average_keep": nn.AdaptiveAvgPool2d((None, 4)),
    "adaptive_max": nn.AdaptiveMaxPool2d(3),
    "power": nn.LPPool2d(2, 2),
}
for name, module in POOLING.items():
    add(f"pool_{name}", "spatial", lambda module=module: Between(module))
for dims, shape in {1: (2, 3, 9), 3: (2, 3, 5, 6, 4)}.items():
    for kind in ("MaxPool", "AvgPool", "AdaptiveAvgPool", "AdaptiveMaxPool"):
        pool = getattr(nn, f"{kind}{dims}d")
        add(f"pool_{kind}{dims}d", "spatial", lambda pool=pool, dims=dims: Between(pool(2), dims=dims), shapes=(shape,))

RESIZING = {
    "nearest": {"scale_factor": 2},
    "nearest_exact": {"scale_factor": 2, "mode": "nearest-exact"},
    "bilinear": {"scale_factor": 1.5, "mode": "bilinear"},
    "bilinear_aligned": {"size": (5, 7), "mode": "bilinear", "align_corners": True},
    "bilinear_antialias": {"size": (5, 5), "mode": "bilinear", "antialias": True},
    "bicubic": {"size": (9, 9), "mode": "bicubic"},
    "area": {"size": (4, 4), "mode": "area"},
}
for name, options in RESIZING.items():
    add(f"resize_{name}", "spatial", lambda o=options: Between(lambda x: F.interpolate(x, **o)))
add(
    "resize_linear",
    "spatial",
    lambda: Between(lambda x: F.interpolate(x, scale_factor=2, mode="linear"), dims=1),
    shapes=((2, 3, 9),),
)
add(
    "resize_trilinear",
    "spatial",
    lambda: Between(lambda x: F.interpolate(x, scale_factor=2, mode="trilinear"), dims=3),
    shapes=((2, 3, 4, 4, 4),),
)

PADDING = {
    "zero": nn.ZeroPad2d((1, 0, 2, 1)),
    "constant": nn.ConstantPad2d(1, 0.7),
    "crop": nn.ZeroPad2d(-1),
    "reflection": nn.ReflectionPad2d(2),
    "replication": nn.ReplicationPad2d(1),
    "circular": nn.CircularPad2d(1),
}
for name, module in PADDING.items():
    add(f"pad_{name}", "spatial", lambda module=module: Between(module))

CHANNEL_PADDING = {
    "both_sides": (lambda x: F.pad(x, (0, 0, 0, 0, 3, 1)), 12),
    "after": (lambda x: F.pad(x, (0, 0, 0, 0, 0, 4)), 12),
    "with_value": (lambda x: F.pad(x, (1, 1, 1, 1, 2, 2), value=0.5), 12),
    "by_cat_with_zeros": (lambda x: torch.cat([x, x.new_zeros(x.shape[0], 4, *x.shape[2:])], 1), 12),
    "crop": (lambda x: F.pad(x, (0, 0, 0, 0, -1, -1)), 6),
}
for name, (function, after) in CHANNEL_PADDING.items():
    kept = ("head", "first") if name == "crop" else ("head",)
    add(f"channel_pad_{name}", "spatial", lambda f=function, n=after: Between(f, after=n), kept=kept)

SHUFFLES = {
    "pixel_shuffle": (nn.PixelShuffle(2), 4),
    "pixel_unshuffle": (nn.PixelUnshuffle(2), 64),
    "channel_shuffle": (nn.ChannelShuffle(4), 16),
    "channel_shuffle_of_two": (nn.ChannelShuffle(2), 16),
    "depth_to_space": (lambda x: x.view(2, 2, 2, 4, 8, 8).permute(0, 3, 4, 1, 5, 2).reshape(2, 4, 16, 16), 4),
    "space_to_depth_slices": (
        lambda x: torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1),
        64,
    ),
}
for name, (op, after) in SHUFFLES.items():
    kept = ("head", "first") if name == "depth_to_space" else ("head",)
    add(name, "spatial", lambda op=op, n=after: Between(op, width=16, after=n), kept=kept)


def shuffle_by_hand(x: Tensor, groups: int = 2) -> Tensor:
    """ShuffleNet's channel shuffle with sizes from the tensor."""
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)


add("channel_shuffle_by_hand", "spatial", lambda: Between(shuffle_by_hand, width=16))
add("channel_shuffle_then_halves", "spatial", lambda: Between(lambda x: sum(shuffle_by_hand(x).chunk(2, 1)), 16, 8))


@network("spatial")
class ShuffledGroups(nn.Module):
    """Grouped convolutions with a channel shuffle between (ShuffleNet v1)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.squeeze, self.norm1 = nn.Conv2d(16, 16, 1, groups=2), nn.BatchNorm2d(16)
        self.shuffle = nn.ChannelShuffle(2)
        self.depthwise, self.norm2 = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16)
        self.grow, self.norm3 = nn.Conv2d(16, 16, 1, groups=2), nn.BatchNorm2d(16)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        y = self.norm2(self.depthwise(self.shuffle(self.norm1(self.squeeze(x)).relu())))
        return self.head((x + self.norm3(self.grow(y))).relu())


@network("spatial")
class Unpooling(nn.Module):
    """Max pooling that returns indices, and unpooling by them (SegNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.pool, self.unpool = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.MaxPool2d(2, return_indices=True),
            nn.MaxUnpool2d(2),
        )
        self.mid, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, where = self.pool(self.first(x).relu())
        return self.head(self.unpool(x + self.mid(x), where))


def sampled(a: Tensor, b: Tensor) -> Tensor:
    """Bilinear sampling of ``a`` at places computed from two channels of ``b``."""
    return F.grid_sample(a, b[:, :2].tanh().permute(0, 2, 3, 1), align_corners=False)


def rotated(x: Tensor) -> Tensor:
    """Sampling at constant places."""
    theta = torch.tensor([[[0.8, 0.2, 0], [-0.2, 0.8, 0]]], dtype=x.dtype).expand(x.shape[0], -1, -1)
    return F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)


add("grid_sample", "spatial", lambda: Pair(sampled, 8), partly={"b": 6})
add("grid_sample_constant", "spatial", lambda: Between(rotated))
add(
    "unfold",
    "spatial",
    lambda: Between(lambda x: F.unfold(x, 3, padding=1).view(2, 72, 8, 8), after=72),
    kept=("head", "first"),
)
add(
    "fold",
    "spatial",
    lambda: Between(lambda x: F.fold(F.unfold(x, 3, padding=1).tanh(), x.shape[2:], 3, padding=1)),
)
add(
    "fold_of_channels",
    "spatial",
    lambda: Between(lambda x: F.fold(x.flatten(2), x.shape[2:], 3, padding=1), width=72, after=8),
)
add("patches", "spatial", lambda: Between(lambda x: x.unfold(2, 4, 4).unfold(3, 4, 4).amax((2, 3))))
