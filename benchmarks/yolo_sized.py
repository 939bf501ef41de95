"""A detection network the size and shape of the small YOLOs: split-and-concatenate blocks, a pyramid, three heads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvBlock(nn.Sequential):
    """Convolution, batch norm, SiLU."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.SiLU(inplace=True),
        )


class SplitBlock(nn.Module):
    """Half of the channels pass by, the other half goes through a chain whose every link is concatenated."""

    def __init__(self, channels_in: int, channels_out: int, depth: int, shortcut: bool) -> None:
        super().__init__()
        half = channels_out // 2
        self.enter = ConvBlock(channels_in, channels_out)
        self.chain = nn.ModuleList(
            nn.Sequential(ConvBlock(half, half, 3), ConvBlock(half, half, 3)) for _ in range(depth)
        )
        self.leave = ConvBlock((2 + depth) * half, channels_out)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.enter(x).chunk(2, 1))
        for link in self.chain:
            y = link(parts[-1])
            parts.append(parts[-1] + y if self.shortcut else y)
        return self.leave(torch.cat(parts, 1))


class PyramidPooling(nn.Module):
    """Three poolings in a row, concatenated."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter = ConvBlock(channels, channels // 2)
        self.leave = ConvBlock(channels * 2, channels)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.enter(x)]
        for _ in range(3):
            parts.append(F.max_pool2d(parts[-1], 5, 1, 2))
        return self.leave(torch.cat(parts, 1))


class Head(nn.Module):
    """Box and class branches of one scale."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.box = nn.Sequential(ConvBlock(channels, 64, 3), ConvBlock(64, 64, 3), nn.Conv2d(64, 64, 1))
        self.cls = nn.Sequential(ConvBlock(channels, 80, 3), ConvBlock(80, 80, 3), nn.Conv2d(80, classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.box(x), self.cls(x)], 1).flatten(2)


class YoloSized(nn.Module):
    """About 3 M parameters. (N, 3, H, W) to (N, 64 + classes, anchors), H and W being multiples of 32."""

    def __init__(self, classes: int = 80) -> None:
        super().__init__()
        self.stem = nn.Sequential(ConvBlock(3, 16, 3, 2), ConvBlock(16, 32, 3, 2), SplitBlock(32, 32, 1, True))
        self.stage3 = nn.Sequential(ConvBlock(32, 64, 3, 2), SplitBlock(64, 64, 2, True))
        self.stage4 = nn.Sequential(ConvBlock(64, 128, 3, 2), SplitBlock(128, 128, 2, True))
        self.stage5 = nn.Sequential(ConvBlock(128, 256, 3, 2), SplitBlock(256, 256, 1, True), PyramidPooling(256))
        self.up4 = SplitBlock(256 + 128, 128, 1, False)
        self.up3 = SplitBlock(128 + 64, 64, 1, False)
        self.step4 = ConvBlock(64, 64, 3, 2)
        self.down4 = SplitBlock(64 + 128, 128, 1, False)
        self.step5 = ConvBlock(128, 128, 3, 2)
        self.down5 = SplitBlock(128 + 256, 256, 1, False)
        self.heads = nn.ModuleList(Head(channels, classes) for channels in (64, 128, 256))

    def forward(self, x: Tensor) -> Tensor:
        c3 = self.stage3(self.stem(x))
        c4 = self.stage4(c3)
        c5 = self.stage5(c4)
        p4 = self.up4(torch.cat([F.interpolate(c5, scale_factor=2.0), c4], 1))
        p3 = self.up3(torch.cat([F.interpolate(p4, scale_factor=2.0), c3], 1))
        n4 = self.down4(torch.cat([self.step4(p3), p4], 1))
        n5 = self.down5(torch.cat([self.step5(n4), c5], 1))
        return torch.cat([head(p) for head, p in zip(self.heads, (p3, n4, n5), strict=True)], 2)
