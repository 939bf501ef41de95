"""Computed weights, shared weights, modules called twice, tied and frozen parameters."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from tests.networks.layers import Between, conv_bn
from tests.networks.registry import add, network


class StandardisedConv(nn.Conv2d):
    """Weight standardisation with a gain (NFNet)."""

    def __init__(self, into: int, out: int, kernel: int, **options: int):
        super().__init__(into, out, kernel, **options)
        self.gain = nn.Parameter(torch.ones(out, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True, correction=0)
        weight = (self.weight - mean) * torch.rsqrt(var * self.weight[0].numel() + 1e-4) * self.gain
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class NormalisedConv(nn.Conv2d):
    """Weight standardisation by a batch norm over the reshaped weight (NF-ResNet, BiT)."""

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, training=True)
        weight = weight.reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Symmetric(nn.Module):
    """A parametrization that averages a kernel with its mirror image."""

    def forward(self, weight: Tensor) -> Tensor:
        return 0.5 * (weight + weight.flip(-1))


class Scaled(nn.Module):
    """A parametrization with a parameter of its own, one scale per output channel."""

    def __init__(self, out: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(out, 1, 1, 1))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.scale


def old_weight_norm(module: nn.Module) -> nn.Module:
    """torch.nn.utils.weight_norm, which computes the weight in a forward pre-hook."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(module)


WRAPPERS = {
    "weight_norm_old": old_weight_norm,
    "weight_norm": parametrizations.weight_norm,
    "weight_norm_of_all": lambda module: parametrizations.weight_norm(module, dim=None),
    "weight_norm_over_inputs": lambda module: parametrizations.weight_norm(module, dim=1),
    "spectral_norm_old": nn.utils.spectral_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "symmetric": lambda module: parametrize.register_parametrization(module, "weight", Symmetric()),
    "scaled": lambda module: parametrize.register_parametrization(module, "weight", Scaled(module.weight.shape[0])),
}


class Wrapped(nn.Module):
    """Two convolutions with computed weights in front of a plain one."""

    def __init__(self, wrap: object, conv: type[nn.Conv2d] = nn.Conv2d):
        super().__init__()
        assert callable(wrap)
        self.first, self.second = wrap(conv(3, 8, 3, padding=1)), wrap(conv(8, 6, 3, padding=1))
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()).relu())


for name, wrap in WRAPPERS.items():
    add(name, "weights", lambda wrap=wrap: Wrapped(wrap))
add(
    "weight_standardisation",
    "weights",
    lambda: Wrapped(lambda m: m, StandardisedConv),
    inexact=("first",),
)
for groups in (1, 2):
    add(
        f"weight_normalised_in_{groups}",
        "weights",
        lambda groups=groups: Between(NormalisedConv(8, 8, 3, groups=groups)),
        inexact=("first",),
    )
add("linear_weight_norm", "weights", lambda: Between(WeightNormedLinear(), after=6))


@network("weights", inexact=("second",))
class WeightNormBehindMean(nn.Module):
    """What a weight-normed layer gives is divided by a mean over its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = parametrizations.weight_norm(nn.Conv2d(3, 8, 3, padding=1))
        self.second, self.head = parametrizations.weight_norm(nn.Conv2d(8, 6, 3, padding=1)), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x).relu())
        return self.head(x / (1 + x.mean(1, keepdim=True).square()))


class WeightNormedLinear(nn.Module):
    """A linear layer with weight norm on channels-last features."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = parametrizations.weight_norm(nn.Linear(8, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@network("weights")
class CalledTwice(nn.Module):
    """A convolution called twice has its input and output channels tied."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.head = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Conv2d(8, 4, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(self.again(self.again(x).relu()))


@network("weights", kept=("tower", "head"))
class SharedTower(nn.Module):
    """One detection tower on two scales; its outputs are the network's outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, 2)
        self.mid, self.tower, self.head = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 5, 1), nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        a = self.a(x).relu()
        return [(self.tower(y), self.head(y)) for y in (self.mid(z).relu() for z in (a, self.b(a)))]


@network("weights")
class SharedParameter(nn.Module):
    """Two modules hold one weight tensor under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.a, self.b, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.head(self.a(x).relu() + self.b(x))


@network("weights", shapes=((2, 6, 8),), kept=("decode",))
class TiedAutoencoder(nn.Module):
    """The decoder uses the encoder's weight transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(8, 12), nn.Linear(8, 8)
        self.bias = nn.Parameter(torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(F.linear(self.encode(x).relu(), self.encode.weight.t(), self.bias))


def _without_gradients() -> nn.Module:
    return conv_net().requires_grad_(False)


def conv_net() -> nn.Module:
    """A plain chain of convolutions, batch norms and ReLUs."""
    return nn.Sequential(conv_bn(3, 8), conv_bn(8, 8), nn.Conv2d(8, 4, 1))


add("all_without_gradients", "weights", _without_gradients, kept=("2",), trains=False)


@network("weights")
class PartlyWithoutGradients(nn.Module):
    """A backbone under no_grad, a branch behind detach, a frozen batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.main = conv_bn(3, 8), conv_bn(8, 6), conv_bn(8, 6)
        self.branch[1].requires_grad_(False)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.stem(x)
        return self.head(self.main(x) + self.branch(x).detach())


@network("weights", kept=("head",))
class EvalInside(nn.Module):
    """A submodule that stays in eval mode whatever train() says."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.main, self.head = conv_bn(3, 8), conv_bn(8, 6), nn.Conv2d(6, 4, 1)

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self.stem.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.main(self.stem(x)))


@network("weights", kept=("2",), shapes=((2, 3, 8, 8),))
class ChannelsLast(nn.Sequential):
    """Parameters in the channels-last memory format."""

    def __init__(self) -> None:
        super().__init__(*conv_net())
        self.to(memory_format=torch.channels_last)


@network(
    "weights", kept=("2",), make_inputs=lambda: (torch.linspace(-1, 1, 384, dtype=torch.float64).view(2, 3, 8, 8),)
)
class DoublePrecision(nn.Sequential):
    """Parameters in float64."""

    def __init__(self) -> None:
        super().__init__(*conv_net())
        self.double()


@network("weights", kept=("head", "a"))
class DynamicFilters(nn.Module):
    """Filters computed from the image (CondConv): experts mixed per sample, applied as a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.route = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 3)
        self.experts = nn.Parameter(torch.randn(3, 6 * 8 * 9) * 0.1)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        weight = self.route(x.mean((2, 3))).sigmoid() @ self.experts
        n, c, h, w = x.shape
        y = F.conv2d(x.reshape(1, n * c, h, w), weight.view(n * 6, c, 3, 3), padding=1, groups=n)
        return self.head(y.view(n, 6, h, w))


@network("weights", kept=("head",))
class Reparametrised(nn.Module):
    """RepVGG: 3x3, 1x1 and identity branches with batch norms, added."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.wide, self.narrow = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.Conv2d(8, 8, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(3))
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.norms[0](self.wide(x)) + self.norms[1](self.narrow(x)) + self.norms[2](x)
        return self.head(x.relu())


@network("weights", kept=("head",))
class WeightTransposedTwice(nn.Module):
    """A convolution with its kernel computed from another one's (merged 1x1 and 3x3)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 1), nn.Conv2d(8, 6, 3, padding=1)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.b.weight + F.pad(self.a.weight, (1, 1, 1, 1))
        return self.head(F.conv2d(self.first(x).relu(), weight, self.a.bias + self.b.bias, padding=1).relu())
