"""Which groups a masked model can stand for: those whose norms can be run on the kept channels alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import channelwise as cw
from channelwise.testing import check_oracle

IMAGES = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A convolution ``first``, an operation ``op`` on its 8 channels, and a convolution ``head``."""

    def __init__(self, op: nn.Module):
        super().__init__()
        self.first, self.op, self.head = nn.Conv2d(3, 8, 3), op, nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.op(self.first(x)))


class Response(nn.Module):
    """ConvNeXt V2's global response normalisation: every channel's strength over the mean of all."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(8, 1, 1)), nn.Parameter(torch.randn(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        strength = x.norm(dim=(2, 3), keepdim=True)
        return x + self.weight * x * (strength / (strength.mean(1, keepdim=True) + 1e-6)) + self.bias


class MeanOnly(nn.Module):
    """Subtracts the mean over the channels."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(1, keepdim=True)


class InPlace(MeanOnly):
    """The same in the memory of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sub_(x.mean(1, keepdim=True))


class WithRunningMean(MeanOnly):
    """Remembers a mean of what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.mean()
        return super().forward(x)


class ConstantSlice(MeanOnly):
    """Treats the first two channels differently, which says nothing about fewer channels."""

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return torch.cat([2 * x[:, :2], x[:, 2:]], 1)


class Reversed(MeanOnly):
    """Returns the channels in another order."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flip(1)


class WithConvolution(MeanOnly):
    """Has parts whose weights lose slots."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x) - x.mean(1, keepdim=True)


class WithActivation(nn.LayerNorm):
    """A layer norm over the channels of images, and an activation by a part of it that is not 0 at 0."""

    def __init__(self) -> None:
        super().__init__(8)
        self.act = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return self.act(x.permute(0, 3, 1, 2))


def normed(net: nn.Module) -> tuple[str, ...]:
    """Trace, have the oracle compare, and tell which norms the group of ``first`` needs."""
    report = check_oracle(net, IMAGES)
    group = next(g for g in report.graph.groups if "first" in g.layers)
    assert not group.exact
    assert group.slim_only == (not group.norms)
    if group.norms:
        assert report.changed > 0
        report.graph.sparse(report.selection)
    return group.norms


@pytest.mark.parametrize(
    "norm",
    [
        lambda: nn.GroupNorm(1, 8),
        lambda: nn.GroupNorm(2, 8, affine=False),
        WithActivation,
        Response,
        MeanOnly,
    ],
    ids=["group norm", "without weights", "fused activation", "global response", "by hand"],
)
def test_modules_that_count_channels_are_run_on_the_kept_ones(norm: Callable[[], nn.Module]) -> None:
    assert normed(Net(norm())) == ("op",)


def hooked() -> nn.Module:
    norm = nn.GroupNorm(1, 8)
    norm.register_forward_pre_hook(lambda module, args: (args[0] - args[0].mean(1, keepdim=True),))
    return norm


def computed() -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.GroupNorm(1, 8))


@pytest.mark.parametrize("norm", [InPlace, WithRunningMean, Reversed, WithConvolution, hooked, computed])
def test_modules_that_cannot_be_run_again_on_some_channels_make_groups_slim_only(
    norm: Callable[[], nn.Module],
) -> None:
    assert normed(Net(norm())) == ()


def test_numbers_in_the_code_of_a_norm_are_not_taken_on_trust() -> None:
    assert not cw.trace(Net(ConstantSlice()), IMAGES).structure.norms


class Twice(nn.Module):
    """One norm, without weights that would tie them, for two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
        self.norm = nn.GroupNorm(1, 8, affine=False)
        self.heads = nn.ModuleList(nn.Conv2d(8, 4, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.heads[0](self.norm(self.first(x))) + self.heads[1](self.norm(self.second(x)))


class InAnotherOrder(Twice):
    """One norm for the channels of a convolution, and for the same in another order."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.heads[0](self.norm(x)) + self.heads[1](self.norm(x.flip(1)))


@pytest.mark.parametrize("network", [Twice, InAnotherOrder])
def test_a_norm_called_on_different_channels_makes_groups_slim_only(network: Callable[[], nn.Module]) -> None:
    assert normed(network()) == ()


class Shared(nn.Module):
    """One norm, called twice on the same channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.GroupNorm(1, 8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.norm(self.first(x)).relu()))


def test_a_norm_may_be_called_again_on_the_same_channels() -> None:
    assert normed(Shared()) == ("norm",)


class Between(nn.Module):
    """A norm over the channels of two layers and three that always stay, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 5, 3, padding=1)
        self.norm, self.head = nn.GroupNorm(1, 16), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(torch.cat([self.first(x), x, self.second(x)], 1)))


def test_a_norm_over_several_groups_counts_what_stays_of_each() -> None:
    report = check_oracle(Between(), IMAGES)
    assert [group.norms for group in report.graph.groups] == [("norm",), ("norm",)]
    (norm,) = report.graph.structure.norms
    assert norm.length == 16
    assert {name: index.tolist() for name, (index, _) in norm.channels.items()} == {
        "first": list(range(8)),
        "second": list(range(11, 16)),
    }


class Functional(nn.Module):
    """The network itself calls the function."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).permute(0, 2, 3, 1)
        return self.head(F.layer_norm(x, x.shape[-1:]).permute(0, 3, 1, 2))


class AlsoAveraged(nn.Module):
    """Behind the norm the network itself takes a mean over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.GroupNorm(1, 8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x))
        return self.head(x - x.mean(1, keepdim=True))


class ByKeyword(nn.Module):
    """The norm gets its input by name."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.GroupNorm(1, 8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(input=self.first(x)))


@pytest.mark.parametrize("network", [Functional, AlsoAveraged, ByKeyword])
def test_other_reasons_keep_groups_slim_only(network: Callable[[], nn.Module]) -> None:
    assert normed(network()) == ()


def test_the_reason_given_is_the_one_that_no_norm_mends() -> None:
    (group,) = cw.trace(AlsoAveraged(), IMAGES).groups
    assert "aten.mean" in group.inexact_because


class OnlyTogether(nn.Module):
    """A norm between two layers whose widths the code needs to be equal without saying so."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 1), nn.GroupNorm(1, 8)
        self.second, self.head = nn.Conv2d(8, 16, 1), nn.Conv2d(2, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x))
        return self.head(self.second(x).reshape(x.shape[0], 2, x.shape[1], *x.shape[2:]).sum(2))


def test_widths_that_must_agree_across_a_norm_are_found_out() -> None:
    check_oracle(OnlyTogether(), IMAGES)


class SlicedBehindNorm(nn.Module):
    """Code behind a norm treats the first two channels differently."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.GroupNorm(1, 8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x))
        return self.head(torch.cat([2 * x[:, :2], x[:, 2:]], 1))


def test_numbers_in_code_behind_a_norm_are_found_by_the_outputs() -> None:
    graph = check_oracle(SlicedBehindNorm(), IMAGES).graph
    assert not graph.groups
