"""Axes that code takes for something else if their length is 1: two channels stay."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import channelwise
from channelwise import Selection
from channelwise.errors import InvalidArgumentError
from channelwise.methods.ofa.elastic import width_choice
from channelwise.structure import Cause
from channelwise.testing import check_oracle
from tests.networks.expectations import why
from tests.random_networks.selections import Choice

Body = Callable[[Tensor], Tensor]


class Network(nn.Module):
    """A hidden layer between two, with ``body`` behind it."""

    def __init__(self, body: Body, width: int = 16) -> None:
        super().__init__()
        self.body, self.first, self.last = body, nn.Conv2d(3, width, 1), nn.LazyLinear(4)
        self(torch.randn(2, 3, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(self.first(x)))


def squeezed(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, 1).squeeze()


def one_axis(x: Tensor) -> Tensor:
    return x.mean((2, 3)).squeeze(1)


def in_place(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, 1).squeeze_()


def deviating(x: Tensor) -> Tensor:
    return x.mean((2, 3)) + x.std(1).mean((1, 2))[:, None]


def two_results(x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, 1, keepdim=True)
    return ((x - mean) / (variance + 1)).mean((2, 3))


def halves(x: Tensor) -> Tensor:
    y = F.adaptive_avg_pool2d(x, 1)
    return torch.cat([y[:, : y.shape[1] // 2].squeeze(), y[:, y.shape[1] // 2 :].flatten(1)], 1)


TWO_STAY = (squeezed, one_axis, in_place, deviating, two_results, halves)


def other_axes(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, 1).squeeze(3).squeeze(2)


def each_twice(x: Tensor) -> Tensor:
    return torch.cat([x, x.relu()], 1).mean((2, 3)).squeeze(1)


def of_space(x: Tensor) -> Tensor:
    return x.var((2, 3))


def of_both(x: Tensor) -> Tensor:
    return x.mean((2, 3)) + x.std((1, 2, 3))[:, None]


def biased(x: Tensor) -> Tensor:
    return x.mean((2, 3)) + x.var(1, unbiased=False).mean((1, 2))[:, None]


ONE_STAYS = (other_axes, each_twice, of_space, of_both, biased)


@pytest.mark.parametrize("body", TWO_STAY + ONE_STAYS)
def test_what_would_go_with_the_second_last_channel(body: Body) -> None:
    graph = check_oracle(Network(body), torch.randn(2, 3, 4, 4), select=Choice("one kept", 0.5, seed=0)).graph
    # Of half of the axis two stay if all but two may go.
    assert graph.groups[0].least == (10 if body is halves else 2 if body in TWO_STAY else 1)


def test_selections_keep_two() -> None:
    graph = channelwise.trace(Network(squeezed), torch.randn(2, 3, 4, 4))
    assert graph.select(sparsity=0.99).counts() == {"first": 2}
    assert width_choice(graph.groups[0], (0.01, 0.5, 1), 1).candidates == (2, 8, 16)
    assert "2 must stay" in str(graph)
    with pytest.raises(InvalidArgumentError, match="keeps 1 channels of the group 'first', of which 2 must stay"):
        graph.macs(Selection({"first": [3]}))
    with pytest.raises(InvalidArgumentError, match="keeps 1 channels of the group 'first', of which 2 must stay"):
        graph.slim(Selection({"first": [3]}))


def test_two_of_two_stay() -> None:
    graph = channelwise.trace(Network(squeezed, width=2), torch.randn(2, 3, 4, 4))
    assert not graph.groups
    assert why(graph, "first") == {(Cause.SINGLE, "")}


class Standardised(nn.Conv2d):
    """Weight standardisation by a batch norm over the inputs and positions of a kernel (timm's ScaledStdConv2d)."""

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, training=True)
        return self._conv_forward(x, weight.reshape_as(self.weight), self.bias)


def grouped_in_a_vector(x: Tensor) -> Tensor:
    return F.group_norm(x.mean((0, 2, 3))[None], 4)


STATISTICS = {
    "kernel of one": (nn.Sequential(nn.Conv2d(3, 8, 1), Standardised(8, 16, 1), nn.Conv2d(16, 4, 1)), {"0": 2, "1": 1}),
    "larger kernel": (nn.Sequential(nn.Conv2d(3, 8, 1), Standardised(8, 16, 3), nn.Conv2d(16, 4, 1)), {"0": 1, "1": 1}),
    "groups of one value": (Network(grouped_in_a_vector), {"first": 2}),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_are_of_two_values(name: str) -> None:
    model, least = STATISTICS[name]
    x = torch.randn(2, 3, 4, 4)
    graph = channelwise.trace(model, x)
    assert {group.name: group.least for group in graph.groups} == least
    graph.slim(graph.select(sparsity=0.99))(x)
