"""Convolutional encoders and decoders: U-Nets in 2 and 3 dimensions, exchange of resolutions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align, roi_pool

from tests.networks.layers import CONV, NORM, TRANSPOSED, conv_bn
from tests.networks.registry import add, network


class UNet(nn.Module):
    """Two levels, transposed convolutions upwards, skip connections by concatenation."""

    def __init__(self, dims: int):
        super().__init__()
        self.down1, self.down2, self.bottom = self.block(dims, 3, 6), self.block(dims, 6, 8), self.block(dims, 8, 12)
        self.pool = {2: nn.MaxPool2d, 3: nn.MaxPool3d}[dims](2)
        self.up2, self.up1 = TRANSPOSED[dims](12, 8, 2, 2), TRANSPOSED[dims](8, 6, 2, 2)
        self.merge2, self.merge1 = self.block(dims, 16, 8), self.block(dims, 12, 6)
        self.head = CONV[dims](6, 2, 1)

    @staticmethod
    def block(dims: int, into: int, out: int) -> nn.Sequential:
        return nn.Sequential(CONV[dims](into, out, 3, padding=1), NORM[dims](out), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(self.pool(a))
        y = self.up2(self.bottom(self.pool(b)))
        y = self.up1(self.merge2(torch.cat([b, y], 1)))
        return self.head(self.merge1(torch.cat([y, a], 1)))


add("UNet2d", "regions", lambda: UNet(2), shapes=((2, 3, 8, 12),))
add("UNet3d", "regions", lambda: UNet(3), shapes=((1, 3, 8, 8, 4),))


@network("regions", shapes=((2, 3, 7, 9),))
class UNetWithPadding(nn.Module):
    """Bilinear upsampling padded to the size of the skip connection, as in common U-Net code."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.merge, self.head = conv_bn(3, 6), conv_bn(6, 8), conv_bn(14, 6), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        y = F.interpolate(self.b(F.max_pool2d(a, 2)), scale_factor=2, mode="bilinear", align_corners=True)
        dy, dx = a.size(2) - y.size(2), a.size(3) - y.size(3)
        y = F.pad(y, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
        return self.head(self.merge(torch.cat([a, y], 1)))


class RegionHead(nn.Module):
    """Features in boxes of two levels, as a two-stage detector pools them."""

    def __init__(self, pool: Callable[..., Tensor]) -> None:
        super().__init__()
        self.fine, self.coarse = conv_bn(3, 8), conv_bn(8, 8, stride=2)
        self.pool, self.head = pool, nn.Linear(8 * 2 * 2, 4)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x)
        boxes = torch.tensor([[0.0, 0, 0, 6, 6], [1, 1, 2, 7, 7], [1, 0, 0, 3, 5]], dtype=x.dtype, device=x.device)
        pooled = torch.zeros(3, fine.shape[1], 2, 2, dtype=x.dtype, device=x.device)
        for level, (features, scale) in enumerate(((fine, 1.0), (self.coarse(fine), 0.5))):
            chosen = torch.where(torch.arange(3) % 2 == level)[0]
            pooled[chosen] = self.pool(features, boxes[chosen], (2, 2), spatial_scale=scale)
        return self.head(pooled.flatten(1))


for name, pool in {"align": roi_align, "pool": roi_pool}.items():
    add(f"regions_{name}", "regions", lambda pool=pool: RegionHead(pool))


@network("regions", kept=("head",))
class ResolutionExchange(nn.Module):
    """HRNet: two resolutions, each receives the sum of both, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.high, self.low = conv_bn(8, 6), conv_bn(8, 10, stride=2)
        self.to_low = nn.ModuleList(nn.Sequential(nn.Conv2d(6, 10, 3, 2, 1), nn.BatchNorm2d(10)) for _ in range(2))
        self.to_high = nn.ModuleList(nn.Sequential(nn.Conv2d(10, 6, 1), nn.BatchNorm2d(6)) for _ in range(2))
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        high, low = self.high(x), self.low(x)
        for to_low, to_high in zip(self.to_low, self.to_high, strict=True):
            up = F.interpolate(to_high(low), size=high.shape[-2:], mode="nearest")
            high, low = (high + up).relu(), (to_low(high) + low).relu()
        return self.head(torch.cat([high, F.interpolate(low, size=high.shape[2:], mode="bilinear")], 1))


@network("regions", kept=("heads.0", "heads.1"), shapes=((2, 3, 16, 16),))
class FeaturePyramid(nn.Module):
    """Lateral convolutions and top-down sums; returns a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = conv_bn(3, 6, stride=2), conv_bn(6, 10, stride=2)
        self.lateral1, self.lateral2 = nn.Conv2d(6, 8, 1), nn.Conv2d(10, 8, 1)
        self.heads = nn.ModuleList(nn.Conv2d(8, 5, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        c1 = self.c1(x)
        p2 = self.lateral2(self.c2(c1))
        p1 = self.lateral1(c1) + F.interpolate(p2, scale_factor=2.0)
        return {"fine": self.heads[0](p1), "coarse": self.heads[1](p2)}


@network("regions", kept=("head",))
class PyramidPooling(nn.Module):
    """PSPNet and ASPP: pooled and dilated branches resized and concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pooled = conv_bn(3, 8), nn.ModuleList(nn.Conv2d(8, 4, 1) for _ in range(2))
        self.dilated, self.head = nn.Conv2d(8, 6, 3, padding=2, dilation=2), nn.Conv2d(22, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        branches = [x, self.dilated(x)]
        for size, conv in zip((1, 2), self.pooled, strict=True):
            y = conv(F.adaptive_avg_pool2d(x, size)).relu()
            branches.append(F.interpolate(y, size=x.shape[2:], mode="bilinear", align_corners=False))
        return self.head(torch.cat(branches, 1))
