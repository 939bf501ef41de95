"""Miniatures of well-known architectures with intricate channel flows."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.networks.layers import conv_bn
from tests.networks.registry import network


class ShuffleUnit(nn.Module):
    """ShuffleNet v2: half passes through, half is convolved, then they are shuffled."""

    def __init__(self, width: int):
        super().__init__()
        half = width // 2
        self.branch = nn.Sequential(conv_bn(half, half, 1), conv_bn(half, half, 3, groups=half), conv_bn(half, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        x = torch.cat([a, self.branch(b)], 1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


@network("architectures", kept=("head",))
class ShuffleNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.units = conv_bn(3, 24), nn.Sequential(ShuffleUnit(24), ShuffleUnit(24))
        self.last, self.head = conv_bn(24, 12, 1), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.units(self.stem(x))).mean((2, 3)))


@network("architectures", kept=("head",))
class DenseNet(nn.Module):
    """Every layer sees all features before it; a transition halves them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layers = nn.Conv2d(3, 8, 3, padding=1), nn.ModuleList()
        for i in range(3):
            width = 8 + 4 * i
            self.layers.append(nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 4, 3, padding=1)))
        self.transition, self.norm = (
            nn.Sequential(nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 10, 1)),
            nn.BatchNorm2d(10),
        )
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        x = F.avg_pool2d(self.transition(torch.cat(features, 1)), 2)
        return self.head(self.norm(x).mean((2, 3)))


@network("architectures", kept=("head",))
class Inception(nn.Module):
    """Parallel branches of unlike kernels and a pooled one, concatenated, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.block(width) for width in (3, 18))
        self.head = nn.Linear(18, 4)

    @staticmethod
    def block(width: int) -> nn.ModuleList:
        return nn.ModuleList(
            [
                conv_bn(width, 4, 1),
                nn.Sequential(conv_bn(width, 4, 1), conv_bn(4, 6)),
                nn.Sequential(
                    conv_bn(width, 3, 1),
                    nn.Conv2d(3, 4, (1, 5), padding=(0, 2)),
                    nn.Conv2d(4, 4, (5, 1), padding=(2, 0)),
                ),
                nn.Sequential(nn.AvgPool2d(3, 1, 1), conv_bn(width, 4, 1)),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = torch.cat([branch(x) for branch in block], 1)
        return self.head(x.mean((2, 3)))


class GhostModule(nn.Module):
    """Cheap features by a depthwise convolution of the first ones, cut to a constant width."""

    def __init__(self, into: int, out: int):
        super().__init__()
        self.out, first = out, (out + 1) // 2
        self.primary, self.cheap = conv_bn(into, first, 1), conv_bn(first, first, 3, groups=first)

    def forward(self, x: Tensor) -> Tensor:
        a = self.primary(x)
        return torch.cat([a, self.cheap(a)], 1)[:, : self.out]


@network("architectures", kept=("head",))
class GhostNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = conv_bn(3, 8), GhostModule(8, 12), GhostModule(12, 8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.b(self.a(x)))


class C2f(nn.Module):
    """YOLOv8's block: a chunk in two, a chain of bottlenecks on the second half, all concatenated."""

    def __init__(self, into: int, out: int, repeats: int = 2):
        super().__init__()
        self.half = out // 2
        self.cv1, self.cv2 = conv_bn(into, out, 1), conv_bn((2 + repeats) * self.half, out, 1)
        self.m = nn.ModuleList(
            nn.Sequential(conv_bn(self.half, self.half), conv_bn(self.half, self.half)) for _ in range(repeats)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).chunk(2, 1))
        for m in self.m:
            y.append(y[-1] + m(y[-1]))
        return self.cv2(torch.cat(y, 1))


@network("architectures", kept=("box", "score"), shapes=((2, 3, 16, 16),))
class Yolo(nn.Module):
    """C2f stages, pooling pyramid, upsampling neck, two heads whose outputs are decoded in eval mode only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.down, self.two = conv_bn(3, 6, 3, 2), C2f(6, 8), conv_bn(8, 12, 3, 2), C2f(12, 12)
        self.reduce, self.expand, self.neck = conv_bn(12, 6, 1), conv_bn(24, 12, 1), C2f(20, 8)
        self.box, self.score = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 3, 1)

    def pyramid(self, x: Tensor) -> Tensor:
        y = [self.reduce(x)]
        y.extend(F.max_pool2d(y[-1], 5, 1, 2) for _ in range(3))
        y[2] = F.max_pool2d(y[1], 5, 1, 2)
        return self.expand(torch.cat(y, 1))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        one = self.one(self.stem(x))
        two = self.pyramid(self.two(self.down(one)))
        y = self.neck(torch.cat([F.interpolate(two, scale_factor=2), one], 1))
        box, score = self.box(y), self.score(y)
        if self.training:
            return box, score
        n, _, h, w = box.shape
        places = torch.arange(h * w, dtype=x.dtype).view(1, 1, -1)
        box = box.view(n, 4, 2, h * w).softmax(2) * torch.arange(2, dtype=x.dtype).view(1, 1, 2, 1)
        return torch.cat([box.sum(2) + places, score.flatten(2).sigmoid()], 1)


@network("architectures", kept=("head",))
class MobileNet(nn.Module):
    """Inverted residuals with squeeze-and-excite and hard-swish."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv_bn(3, 8), nn.Linear(8, 4)
        self.expand, self.depthwise = conv_bn(8, 24, 1), conv_bn(24, 24, 5, groups=24)
        self.squeeze, self.excite = nn.Conv2d(24, 6, 1), nn.Conv2d(6, 24, 1)
        self.project = nn.Sequential(nn.Conv2d(24, 8, 1, bias=False), nn.BatchNorm2d(8))

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.stem(x))
        y = self.depthwise(self.expand(x))
        y = y * F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        return self.head((x + self.project(y)).mean((2, 3)))


@network("architectures", kept=("head",))
class ResNeXt(nn.Module):
    """Bottlenecks with grouped convolutions, width per group 2."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv_bn(3, 16), nn.Linear(16, 4)
        self.blocks = nn.ModuleList(
            nn.Sequential(conv_bn(16, 8, 1), conv_bn(8, 8, 3, groups=4), nn.Conv2d(8, 16, 1), nn.BatchNorm2d(16))
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = (x + block(x)).relu()
        return self.head(x.mean((2, 3)))


@network("architectures", kept=("head",), partly={"grow": 4, "out": 4})
class DualPath(nn.Module):
    """DPN: part of the output is added to the residual path, the rest grows the dense path (constant slices)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mid, self.out, self.head = (
            conv_bn(3, 8),
            conv_bn(12, 6),
            nn.Conv2d(6, 12, 1),
            nn.Conv2d(16, 4, 1),
        )
        self.grow = nn.Conv2d(8, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grow(self.stem(x))
        residual, dense = x[:, :8], x[:, 8:]
        y = self.out(self.mid(torch.cat([residual, dense], 1)))
        return self.head(torch.cat([residual + y[:, :8], dense, y[:, 8:]], 1))


@network("architectures", kept=("head", "grow.0", "block.0"))
class CrossStagePartial(nn.Module):
    """CSPNet: one expanding convolution split by a constant into a bypass and a main path."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grow, self.block, self.join = conv_bn(3, 8), conv_bn(8, 12, 1), conv_bn(6, 6), conv_bn(12, 8, 1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grow(self.stem(x))
        bypass, main = x.split(6, dim=1)
        return self.head(self.join(torch.cat([bypass, main + self.block(main)], 1)))


@network("architectures", kept=("head",), shapes=((2, 3, 9),))
class TemporalConvolutions(nn.Module):
    """WaveNet: dilated 1-d convolutions, gates, skip sums, causal crops."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(3, 8, 1)
        self.gates = nn.ModuleList(nn.Conv1d(8, 12, 2, padding=2**i, dilation=2**i) for i in range(2))
        self.residuals, self.skips = (nn.ModuleList(nn.Conv1d(6, w, 1) for _ in range(2)) for w in (8, 10))
        self.head = nn.Conv1d(10, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        length, x, skips = x.shape[-1], self.stem(x), 0
        for gate, residual, skip in zip(self.gates, self.residuals, self.skips, strict=True):
            a, b = gate(x)[..., :length].chunk(2, 1)
            y = a.tanh() * b.sigmoid()
            x, skips = x + residual(y), skips + skip(y)
        return self.head(skips.relu())
