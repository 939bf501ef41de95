"""Convolutions of every layout, linear layers and matrix products."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from channelwise.structure import Cause
from tests.networks.layers import CONV, NORM, TRANSPOSED
from tests.networks.registry import add, network

IMAGES = {1: (2, 3, 9), 2: (2, 3, 8, 8), 3: (2, 3, 5, 6, 4)}


class Chain(nn.Module):
    """``first``, a layer under test called ``mid``, and ``head``, with batch norms and ReLUs between."""

    def __init__(self, mid: nn.Module, into: int = 8, out: int = 8, dims: int = 2):
        super().__init__()
        self.first, self.norm1 = CONV[dims](3, into, 3, padding=1), NORM[dims](into)
        self.mid, self.norm2 = mid, NORM[dims](out)
        self.head = CONV[dims](out, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.first(x)))
        return self.head(F.relu(self.norm2(self.mid(x))))


for dims in (1, 2, 3):
    conv, transposed, shapes = CONV[dims], TRANSPOSED[dims], (IMAGES[dims],)
    for name, build in {
        "plain": lambda c=conv, d=dims: Chain(c(8, 12, 3, stride=2, padding=1), 8, 12, d),
        "no_bias_dilated": lambda c=conv, d=dims: Chain(c(8, 12, 3, padding=2, dilation=2, bias=False), 8, 12, d),
        "grouped": lambda c=conv, d=dims: Chain(c(8, 12, 3, padding=1, groups=2), 8, 12, d),
        "grouped_of_two": lambda c=conv, d=dims: Chain(c(8, 16, 3, padding=1, groups=4), 8, 16, d),
        "depthwise": lambda c=conv, d=dims: Chain(c(8, 8, 3, padding=1, groups=8), 8, 8, d),
        "depthwise_twice": lambda c=conv, d=dims: Chain(c(8, 16, 3, padding=1, groups=8), 8, 16, d),
        "transposed": lambda t=transposed, d=dims: Chain(t(8, 12, 2, stride=2), 8, 12, d),
        "transposed_grouped": lambda t=transposed, d=dims: Chain(t(8, 12, 3, stride=2, groups=2), 8, 12, d),
        "transposed_depthwise": lambda t=transposed, d=dims: Chain(t(8, 8, 3, groups=8), 8, 8, d),
        "transposed_depthwise_twice": lambda t=transposed, d=dims: Chain(t(8, 16, 3, groups=8), 8, 16, d),
    }.items():
        add(f"conv{dims}d_{name}", "convolutions", build, shapes=shapes)

for mode in ("zeros", "reflect", "replicate", "circular"):
    add(
        f"padding_mode_{mode}",
        "convolutions",
        lambda mode=mode: Chain(nn.Conv2d(8, 12, 3, padding=1, padding_mode=mode), 8, 12),
    )
add("padding_same", "convolutions", lambda: Chain(nn.Conv2d(8, 12, 4, padding="same"), 8, 12))
add("padding_same_dilated", "convolutions", lambda: Chain(nn.Conv2d(8, 12, 3, padding="same", dilation=2), 8, 12))
add("padding_valid", "convolutions", lambda: Chain(nn.Conv2d(8, 12, 3, padding="valid"), 8, 12))
add("pointwise_of_even_kernel", "convolutions", lambda: Chain(nn.Conv2d(8, 12, (1, 4), (2, 1), (0, 2)), 8, 12))


class PickyConv(nn.Conv2d):
    """A convolution whose constructor takes other arguments than nn.Conv2d and which keeps attributes of its own."""

    def __init__(self, width: dict[str, int], *, note: str):
        super().__init__(width["from"], width["to"], 3, padding=1)
        self.note = note

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 0.5


add(
    "subclass_with_own_constructor",
    "convolutions",
    lambda: Chain(PickyConv({"from": 8, "to": 12}, note="mine"), 8, 12),
)


@network("convolutions", kept=("fc3",))
class LinearChain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(192, 12), nn.Linear(12, 10, bias=False), nn.Linear(10, 4)
        self.norm = nn.BatchNorm1d(10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(self.norm(self.fc2(F.relu(self.fc1(x.flatten(1))))))


@network("convolutions", kept=("depthwise", "head"), because={"depthwise": (Cause.FIXED, "depthwise")})
class DepthwiseOnImages(nn.Module):
    """The colours are filtered first."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise, self.wide = nn.Conv2d(3, 6, 3, groups=3), nn.Conv2d(6, 8, 1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.wide(self.depthwise(x)).relu())


@network("convolutions", shapes=((2, 5, 7, 6),), kept=("fc2",))
class LinearOnTokens(nn.Module):
    """Linear layers on the last axis of a 4-d tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


@network("convolutions", kept=(), smaller=("a", "b", "bias"))
class MatmulOfParameters(nn.Module):
    """Matrix products with bare parameters: matmul from both sides, addmm and baddbmm-like broadcasting."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(192, 10)), nn.Parameter(torch.randn(6, 10))
        self.bias, self.c = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.matmul(x.flatten(1), self.a).relu()
        x = (self.b @ x.t()).t() + self.bias
        return torch.mm(x.relu(), self.c)


@network("convolutions", kept=(), smaller=("w1", "w2"), shapes=((2, 3, 8, 8),))
class FunctionalConvolution(nn.Module):
    """torch.nn.functional convolutions with bare parameters, a constant group count in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.b1 = nn.Parameter(torch.randn(8, 3, 3, 3)), nn.Parameter(torch.randn(8))
        self.w2, self.w3 = nn.Parameter(torch.randn(16, 4, 3, 3)), nn.Parameter(torch.randn(4, 16, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.w1, self.b1, padding=1).relu()
        x = F.conv2d(x, self.w2, groups=2).relu()
        return F.conv2d(x, self.w3)


@network("convolutions", kept=(), smaller=())
class FunctionalDepthwise(nn.Module):
    """A depthwise convolution by a hard-coded number of groups: it breaks unless these channels stay."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Parameter(torch.randn(8, 3, 3, 3)), nn.Parameter(torch.randn(8, 1, 3, 3))
        self.w3 = nn.Parameter(torch.randn(4, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(F.conv2d(x, self.w1).relu(), self.w2, groups=8)
        return F.conv2d(x, self.w3)


@network("convolutions", kept=(), smaller=("w1", "w2"))
class FunctionalDepthwiseByShape(FunctionalDepthwise):
    """The same with the number of groups taken from the tensor."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.w1).relu()
        return F.conv2d(F.conv2d(x, self.w2, groups=x.shape[1]), self.w3)


@network("convolutions", kept=("conv2",))
class ConvolutionAsOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x).relu())


@network("convolutions", kept=("up",), shapes=((2, 3, 4, 4),))
class DynamicOutputSize(nn.Module):
    """A transposed convolution told its output size, which makes it compute its output padding."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 8, 3, 2, 1), nn.ConvTranspose2d(8, 4, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x).relu(), output_size=x.shape[-2:])


@network("convolutions", shapes=((2, 6), (2, 5)), kept=("head", "a", "b"))
class Bilinear(nn.Module):
    """nn.Bilinear of two features."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(5, 8)
        self.bilinear, self.head = nn.Bilinear(8, 8, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(self.bilinear(self.a(x).relu(), self.b(y).relu()).relu())


@network("convolutions", kept=("up", "head"), shapes=((2, 3, 8),))
class ProductsAfterGroupedTransposed(nn.Module):
    """Products of all channels of a grouped transposed convolution: they count, not those of a group."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.up = nn.Conv1d(3, 12, 3, padding=1), nn.ConvTranspose1d(12, 6, 3, padding=1, groups=3)
        self.head = nn.Conv1d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(self.first(x))
        return self.head(torch.bmm(torch.bmm(y, y.transpose(1, 2)).softmax(-1), y))
