"""The YOLOv5 detection networks (release 6: 6x6 stem, C3 blocks, SPPF, two-way pyramid), written from their structure.

Modules are created in the published order; their names are our own, and the anchors are kept in pixels, not in cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDES = (8, 16, 32)
# Width and height in pixels of the three anchors of each scale, as fitted to COCO at 640 px.
ANCHORS = (
    ((10, 13), (16, 30), (33, 23)),
    ((30, 61), (62, 45), (59, 119)),
    ((116, 90), (156, 198), (373, 326)),
)


class ConvBlock(nn.Module):
    """Convolution, batch norm, SiLU. Odd kernels keep the size of the map, up to the stride."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int = 1, stride: int = 1, padding: int | None = None
    ) -> None:
        super().__init__()
        padding = kernel // 2 if padding is None else padding
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(channels_out, eps=1e-3, momentum=0.03)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    """A 1x1 and a 3x3 block of the same width; the backbone adds the input, the neck does not."""

    def __init__(self, channels: int, shortcut: bool) -> None:
        super().__init__()
        self.reduce = ConvBlock(channels, channels)
        self.spread = ConvBlock(channels, channels, 3)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.spread(self.reduce(x))
        return x + y if self.shortcut else y


class C3(nn.Module):
    """Two half-wide views of the input, one of them through `repeats` bottlenecks, concatenated and mixed."""

    def __init__(self, channels_in: int, channels_out: int, repeats: int, shortcut: bool = True) -> None:
        super().__init__()
        half = channels_out // 2
        self.enter = ConvBlock(channels_in, half)
        self.bypass = ConvBlock(channels_in, half)
        self.leave = ConvBlock(2 * half, channels_out)
        self.chain = nn.Sequential(*(Bottleneck(half, shortcut) for _ in range(repeats)))

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(torch.cat([self.chain(self.enter(x)), self.bypass(x)], 1))


class SPPF(nn.Module):
    """Spatial pyramid pooling, fast: three 5x5 poolings in a row see what 5x5, 9x9 and 13x13 ones would."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter = ConvBlock(channels, channels // 2)
        self.leave = ConvBlock(channels // 2 * 4, channels)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.enter(x)]
        for _ in range(3):
            maps.append(F.max_pool2d(maps[-1], 5, stride=1, padding=2))
        return self.leave(torch.cat(maps, 1))


class Detect(nn.Module):
    """One 1x1 convolution for each scale, and what its outputs mean as boxes.

    Takes three maps (N, C_i, H_i, W_i). In train mode it returns three raw maps (N, 3, H_i, W_i, 5 + classes); in eval
    mode a pair: boxes (N, sum of 3 H_i W_i, 5 + classes) with centre and size in pixels, objectness and class scores in
    [0, 1], and the raw maps.
    """

    anchors: Tensor

    def __init__(self, channels: Sequence[int], classes: int) -> None:
        super().__init__()
        self.outputs = 5 + classes
        self.register_buffer("anchors", torch.tensor(ANCHORS, dtype=torch.get_default_dtype()))
        self.heads = nn.ModuleList(nn.Conv2d(c, len(ANCHORS[0]) * self.outputs, 1) for c in channels)
        self._start_from_the_base_rates(classes)

    def _start_from_the_base_rates(self, classes: int) -> None:
        # Almost every anchor is background; without this prior the first steps of a training only learn that.
        for head, stride in zip(self.heads, STRIDES, strict=True):
            with torch.no_grad():
                bias = head.get_parameter("bias").view(-1, self.outputs)
                bias[:, 4] += math.log(8 / (640 / stride) ** 2)
                bias[:, 5:] += math.log(0.6 / max(classes - 1, 1))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        maps = []
        for head, feature in zip(self.heads, features, strict=True):
            y = head(feature)
            n, _, h, w = y.shape
            maps.append(y.view(n, -1, self.outputs, h, w).permute(0, 1, 3, 4, 2).contiguous())
        if self.training:
            return maps
        boxes = [self._decode(y, *scale) for y, *scale in zip(maps, STRIDES, self.anchors, strict=True)]
        return torch.cat(boxes, 1), maps

    def _decode(self, y: Tensor, stride: int, anchors: Tensor) -> Tensor:
        """(N, 3, H, W, 5 + classes) to (N, 3 H W, 5 + classes)."""
        n, _, h, w, _ = y.shape
        rows, columns = (torch.arange(size, dtype=y.dtype, device=y.device) for size in (h, w))
        cells = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)
        centre, size, scores = y.sigmoid().split((2, 2, self.outputs - 4), -1)
        centre = (2 * centre - 0.5 + cells) * stride
        size = (2 * size) ** 2 * anchors.view(1, -1, 1, 1, 2)
        return torch.cat([centre, size, scores], -1).view(n, -1, self.outputs)


class YoloV5(nn.Module):
    """Backbone, top-down and bottom-up pyramid, anchors. (N, 3, H, W), multiples of 32, to what `Detect` returns.

    `depth` scales the number of bottlenecks, `width` the number of channels.
    """

    def __init__(self, depth: float, width: float, classes: int = 80) -> None:
        super().__init__()
        # Multiples of 8 suit the hardware.
        c1, c2, c3, c4, c5 = (math.ceil(c * width / 8) * 8 for c in (64, 128, 256, 512, 1024))
        few, some, many = (max(round(n * depth), 1) for n in (3, 6, 9))

        self.stem = ConvBlock(3, c1, 6, 2, padding=2)
        self.stage2 = nn.Sequential(ConvBlock(c1, c2, 3, 2), C3(c2, c2, few))
        self.stage3 = nn.Sequential(ConvBlock(c2, c3, 3, 2), C3(c3, c3, some))
        self.stage4 = nn.Sequential(ConvBlock(c3, c4, 3, 2), C3(c4, c4, many))
        self.stage5 = nn.Sequential(ConvBlock(c4, c5, 3, 2), C3(c5, c5, few), SPPF(c5))

        self.lateral5 = ConvBlock(c5, c4)
        self.up4 = C3(2 * c4, c4, few, shortcut=False)
        self.lateral4 = ConvBlock(c4, c3)
        self.up3 = C3(2 * c3, c3, few, shortcut=False)
        self.step4 = ConvBlock(c3, c3, 3, 2)
        self.down4 = C3(2 * c3, c4, few, shortcut=False)
        self.step5 = ConvBlock(c4, c4, 3, 2)
        self.down5 = C3(2 * c4, c5, few, shortcut=False)
        self.detect = Detect((c3, c4, c5), classes)

    def forward(self, x: Tensor) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        b3 = self.stage3(self.stage2(self.stem(x)))
        b4 = self.stage4(b3)
        t5 = self.lateral5(self.stage5(b4))
        t4 = self.lateral4(self.up4(_join(_twice_as_large(t5), b4)))
        p3 = self.up3(_join(_twice_as_large(t4), b3))
        p4 = self.down4(_join(self.step4(p3), t4))
        p5 = self.down5(_join(self.step5(p4), t5))
        return self.detect([p3, p4, p5])


def _twice_as_large(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def _join(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([a, b], 1)


def yolov5n(classes: int = 80) -> YoloV5:
    """1.9 M parameters, 2.2 G MACs at 640 px."""
    return YoloV5(0.33, 0.25, classes)


def yolov5s(classes: int = 80) -> YoloV5:
    """7.2 M parameters, 8.2 G MACs at 640 px."""
    return YoloV5(0.33, 0.50, classes)


def yolov5m(classes: int = 80) -> YoloV5:
    """21.2 M parameters, 24.4 G MACs at 640 px."""
    return YoloV5(0.67, 0.75, classes)


def yolov5l(classes: int = 80) -> YoloV5:
    """46.6 M parameters, 54.5 G MACs at 640 px."""
    return YoloV5(1.00, 1.00, classes)
