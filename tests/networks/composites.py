"""Combinations known to break pruning tools."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from channelwise.structure import Cause
from tests.networks.layers import conv_bn
from tests.networks.registry import network


@network("composites")
class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = conv_bn(3, 8)
        self.squeeze, self.excite, self.head = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(x * self.excite(self.squeeze(F.adaptive_avg_pool2d(x, 1)).relu()).sigmoid())


@network("composites")
class SqueezeExciteLinear(nn.Module):
    """The original form: linear layers on a flattened mean, viewed back."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = conv_bn(3, 8), nn.Conv2d(8, 4, 1)
        self.fc = nn.Sequential(nn.Linear(8, 4, bias=False), nn.ReLU(), nn.Linear(4, 8, bias=False), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        n, c, _, _ = x.size()
        return self.head(x * self.fc(x.mean((2, 3)).view(n, c)).view(n, c, 1, 1).expand_as(x))


@network("composites", kept=("head", "mix"), counted=("second.0",))
class EfficientChannelAttention(nn.Module):
    """ECA: a 1-d convolution along the channels as an axis of positions; masked models run it on the kept ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv_bn(3, 8), conv_bn(8, 6)
        self.mix, self.head = nn.Conv1d(1, 1, 3, padding=1), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x))
        gate = self.mix(x.mean((2, 3)).unsqueeze(1)).transpose(1, 2).unsqueeze(-1)
        return self.head(x * gate.sigmoid())


@network("composites", kept=("head", "second.0", "mix"), because={"second.0": (Cause.FIXED, "")})
class ConvolutionThatDropsChannels(EfficientChannelAttention):
    """The same without padding: which channels a gate is for depends on how many there are."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x))
        gate = nn.functional.conv1d(x.mean((2, 3)).unsqueeze(1), self.mix.weight).squeeze(1)
        return self.head(x * nn.functional.pad(gate, (1, 1))[:, :, None, None].sigmoid())


@network("composites", shapes=((2, 3, 8),), kept=("head", "mix"))
class PointwiseOverChannels(nn.Module):
    """A kernel of length 1 along the channels: they have no neighbours, so that all is exact."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.mix, self.head = nn.Conv1d(3, 8, 3), nn.Conv2d(1, 1, 1, bias=False), nn.Conv1d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(self.first(x).unsqueeze(1)).squeeze(1))


@network("composites")
class InputBeforeFeatures(nn.Module):
    """The network's input concatenated in front of features."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = conv_bn(3, 8), conv_bn(11, 8), nn.Conv2d(11, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(torch.cat([x, self.first(x)], 1))
        return self.head(torch.cat([x, y], 1))


@network("composites")
class InputAfterFeatures(nn.Module):
    """The network's input concatenated behind features."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = conv_bn(3, 8), conv_bn(11, 8), nn.Conv2d(11, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(torch.cat([self.first(x), x], 1))
        return self.head(torch.cat([y, x], 1))


@network("composites", kept=("first.0", "head"))
class InputAddedToFeatures(nn.Module):
    """Features added to the network's input have to stay; those behind them do not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = conv_bn(3, 3), conv_bn(3, 8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(x + self.first(x)))


@network("composites")
class CoordConv(nn.Module):
    """Coordinate channels concatenated to features."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = conv_bn(3, 8), conv_bn(10, 8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        n, _, h, w = x.shape
        rows = torch.linspace(-1, 1, h, dtype=x.dtype).view(1, 1, h, 1).expand(n, 1, h, w)
        columns = torch.linspace(-1, 1, w, dtype=x.dtype).view(1, 1, 1, w).expand(n, 1, h, w)
        return self.head(self.second(torch.cat([rows, x, columns], 1)))


@network("composites")
class ChannelsLastFlatten(nn.Module):
    """permute, then flatten, before a linear layer: the channels are the fast index."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = conv_bn(3, 8, stride=2), nn.Linear(128, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x).permute(0, 2, 3, 1).flatten(1))


@network("composites", kept=("fc2",))
class FlattenBeforeLinear(nn.Module):
    """VGG's classifier: every channel owns a block of columns."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(conv_bn(3, 8), nn.MaxPool2d(2), conv_bn(8, 6), nn.AdaptiveAvgPool2d(3))
        self.norm, self.fc1, self.fc2 = nn.BatchNorm1d(54), nn.Linear(54, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(self.norm(torch.flatten(self.features(x), 1))).relu())


@network("composites", kept=("a.0", "head"))
class FlattenedOutput(nn.Module):
    """A stage's features go out flattened, and on into the network."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv_bn(3, 8), conv_bn(8, 8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.a(x)
        return x.flatten(1), self.head(self.b(x))


@network("composites")
class StackFlatten(nn.Module):
    """stack(1).flatten(1, 2) of two branches, and stack(2) which interleaves them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (conv_bn(*w) for w in ((3, 8), (3, 8), (16, 6), (16, 6)))
        self.head = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        c, d = self.c(torch.stack([a, b], 1).flatten(1, 2)), self.d(torch.stack([a, b], 2).flatten(1, 2))
        return self.head(torch.stack([c, d], 2).flatten(1, 2))


@network("composites", kept=("head", "a.0", "b.0"))
class FlipsAndRolls(nn.Module):
    """Channels flipped and rolled before they are added to others."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv_bn(3, 8), conv_bn(3, 8), conv_bn(8, 6), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        return self.head(self.c(a.flip(1) + b.roll(2, 1)).flip(1))


@network("composites")
class ChannelPadThenConvolution(nn.Module):
    """Channels padded by a constant count, then a convolution which sees padding and features."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = conv_bn(3, 8), conv_bn(13, 8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(F.pad(self.first(x), (0, 0, 0, 0, 2, 3), value=0.3)))


@network("composites", kept=("head",), partly={"down.0": 8, "back.0": 8})
class OptionA(nn.Module):
    """CIFAR ResNet's shortcut: every second pixel, channels padded with zeros on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.down = conv_bn(3, 8), conv_bn(8, 16, stride=2)
        self.mid, self.head = conv_bn(16, 12), nn.Conv2d(16, 4, 1)
        self.back = conv_bn(12, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = (self.down(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))).relu()
        return self.head(x + self.back(self.mid(x)))


@network("composites", kept=("head", "auxiliary"))
class AuxiliaryHead(nn.Module):
    """A head used in training only; its layers belong to the trace too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv_bn(3, 8), conv_bn(8, 8), nn.Conv2d(8, 4, 1)
        self.before, self.auxiliary = conv_bn(8, 6), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.a(x)
        y = self.head(self.b(x))
        return (y, self.auxiliary(self.before(x))) if self.training else y


@network("composites", kept=("head",), trains=False)
class WantsTargets(nn.Module):
    """The training path needs targets and raises without: it is skipped with a note."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = conv_bn(3, 8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
        y = self.head(self.a(x))
        if self.training:
            if targets is None:
                raise ValueError("targets should not be None in training mode")
            return F.mse_loss(y, targets)
        return y


@network("composites", kept=("head", "unused"))
class UnusedLayer(nn.Module):
    """A layer that no path calls: nothing is known about it, so it stays as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.unused, self.head = conv_bn(3, 8), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.a(x))


@network("composites", kept=("head", "b.0"))
class DataDependentBranch(nn.Module):
    """Control flow that depends on values: only the branch taken is seen."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv_bn(3, 8), conv_bn(8, 8), conv_bn(8, 8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if float(x.sum()) > 1e9:
            y = y + self.b(y)
        return self.head(self.c(y))


@network("composites", kept=("head",))
class DeepResidual(nn.Module):
    """Identity and projected shortcuts, a bottleneck; the stem is tied over three additions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.blocks = nn.ModuleList(nn.Sequential(conv_bn(8, 4, 1), conv_bn(4, 4), conv_bn(4, 8, 1)) for _ in range(3))
        self.project, self.down = nn.Conv2d(8, 12, 1, 2), conv_bn(8, 12, stride=2)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x) + x
        return self.head((self.project(x) + self.down(x)).relu().mean((2, 3)))
