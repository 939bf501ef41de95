"""Operations without a rule: they must freeze what they touch under their own name, never raise or guess."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import Function

from channelwise.structure import Cause
from tests.networks.layers import Between, conv_bn
from tests.networks.registry import add, network


@torch.library.custom_op("channelwise_tests::sorted_channels", mutates_args=())
def sorted_channels(x: Tensor) -> Tensor:
    """An operation nobody knows, which mixes the channels."""
    return x.sort(dim=1).values.clone()


@sorted_channels.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


sorted_channels.register_autograd(lambda ctx, grad: grad)


class StraightThrough(Function):
    """An autograd function with a gradient of its own; its forward consists of known operations."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return (x * 4).round() / 4

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient


@network("unknown", kept=("second.0", "head"), because={"second.0": (Cause.NO_RULE, "")})
class CustomOperation(nn.Module):
    """Only the convolution right before the unknown operation stays."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = conv_bn(3, 8), conv_bn(8, 8), conv_bn(8, 6)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.third(sorted_channels(self.second(self.first(x)))))


@network("unknown", kept=("head", "gate"))
class CustomOperationOnGate(nn.Module):
    """The unknown operation sees a mean over channels only; what it touches stays safe either way."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate, self.head = conv_bn(3, 8), nn.Conv2d(8, 2, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(x * sorted_channels(self.gate(x)).mean(1, keepdim=True))


add("autograd_function", "unknown", lambda: Between(StraightThrough.apply))
add(
    "fourier",
    "unknown",
    lambda: Between(lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * 0.5, s=x.shape[-2:])),
    kept=("head", "first"),
)
add(
    "linear_solver",
    "unknown",
    lambda: Between(lambda x: torch.linalg.inv(x @ x.mT + torch.eye(8, dtype=x.dtype))),
    kept=("head", "first"),
)
add("through_numpy", "unknown", lambda: Between(lambda x: x * float(x.detach().numpy().mean())), kept=("head", "first"))
add("item", "unknown", lambda: Between(lambda x: x * x.sum().item()))
add("nonzero", "unknown", lambda: Between(lambda x: x * len(torch.nonzero(x > 0))), kept=("head", "first"))
add(
    "scatter",
    "unknown",
    lambda: Between(lambda x: x.scatter(3, torch.zeros(2, x.shape[1], 8, 1, dtype=torch.long), 1.0)),
    kept=("head", "first"),
)
add("masked_assignment", "unknown", lambda: Between(masked_assignment), kept=("head", "first"))
add("boolean_index", "unknown", lambda: Between(lambda x: x + x[x > 0].sum()), kept=("head", "first"))


def masked_assignment(x: Tensor) -> Tensor:
    """x[mask] = value."""
    x = x.clone()
    x[x > 0.5] = 0.5
    return x
