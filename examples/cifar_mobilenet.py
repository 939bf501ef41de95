"""MobileNetV2 (Sandler et al., 2018) for images of 32 px: the stem and the second stage keep the resolution."""

from __future__ import annotations

from torch import Tensor, nn

# Expansion, channels, blocks and stride of every stage.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def convolution(
    channels_in: int, channels_out: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    """A convolution without bias and its batch norm."""
    conv = nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(channels_out)]


class InvertedResidual(nn.Module):
    """1x1 to ``expansion`` times the channels, 3x3 of each channel alone, 1x1 back; a shortcut if shapes agree."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = expansion * channels_in
        wider = [] if expansion == 1 else [*convolution(channels_in, hidden), nn.ReLU6()]
        self.conv = nn.Sequential(
            *wider,
            *convolution(hidden, hidden, 3, stride, groups=hidden),
            nn.ReLU6(),
            *convolution(hidden, channels_out),
        )
        self.shortcut = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.shortcut else self.conv(x)


class CifarMobileNetV2(nn.Module):
    """A stem, seven stages of inverted residuals and a classifier. (N, 3, 32, 32) in."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        layers, width = [*convolution(3, 32, 3), nn.ReLU6()], 32
        for expansion, channels, blocks, stride in STAGES:
            for block in range(blocks):
                layers.append(InvertedResidual(width, channels, stride if block == 0 else 1, expansion))
                width = channels
        self.features = nn.Sequential(*layers, *convolution(width, 1280), nn.ReLU6())
        self.classifier = nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean(dim=(2, 3)))


def mobilenet_v2() -> CifarMobileNetV2:
    """2,236,682 parameters, 88 M MACs at 32 px."""
    return CifarMobileNetV2()
