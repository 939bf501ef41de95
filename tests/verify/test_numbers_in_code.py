"""Numbers that stand in the user's code: they adapt, or the channels that depend on them stay."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import channelwise as cw
from channelwise.errors import InvalidArgumentError, UnsupportedModelError
from channelwise.structure import Cause
from channelwise.testing import check_oracle
from tests.networks.expectations import why

IMAGES = torch.randn(2, 3, 12, 12)


class Gated(nn.Module):
    """Two convolutions with a function of the first one's output, its weight and a parameter between them."""

    def __init__(self, middle: Callable[[Gated, Tensor], Tensor], read: int = 16) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 3), nn.Conv2d(read, 4, 1)
        self.gate = nn.Parameter(torch.rand(16) + 0.5)
        self.middle, self.width = middle, 16

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self, x))


STAYS = {
    "view of a parameter": lambda m, x: m.first(x) * m.gate.view(1, 16, 1, 1),
    "expanded parameter": lambda m, x: m.first(x) * m.gate.expand(2, 10, 10, 16).permute(0, 3, 1, 2),
    "reshaped weight": lambda m, x: F.conv2d(x, m.first.weight.reshape(16, 27).view(16, 3, 3, 3)),
    "divided by the width": lambda m, x: m.first(x) * m.gate.view(1, -1, 1, 1) / m.gate.shape[0],
}


@pytest.mark.parametrize("middle", STAYS.values(), ids=STAYS.keys())
def test_a_number_that_does_not_adapt_freezes(middle: Callable[[Gated, Tensor], Tensor]) -> None:
    graph = cw.trace(Gated(middle), IMAGES)
    assert not graph.groups


def test_minus_one_in_a_view_of_a_parameter_adapts() -> None:
    report = check_oracle(Gated(lambda m, x: m.first(x) * m.gate.view(1, -1, 1, 1)), IMAGES)
    assert [g.size for g in report.graph.groups] == [16]


def test_minus_one_says_which_of_two_axes_gets_shorter() -> None:
    network = Gated(lambda m, x: m.first(x).view(x.shape[0], -1, 2, 10, 10).amax(2), read=8)
    network.gate.requires_grad_(False)
    graph = cw.trace(network, IMAGES)
    assert [g.size for g in graph.groups] == [8]
    assert graph.slim(graph.select(sparsity=0.5)).first.out_channels == 8


class ScaledConvolution(nn.Conv2d):
    """A convolution with equalised learning rate, which reads its width while it runs."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight / math.sqrt(self.in_channels), self.bias)


def test_a_width_read_from_an_attribute_is_noticed() -> None:
    graph = cw.trace(nn.Sequential(nn.Conv2d(3, 16, 3), ScaledConvolution(16, 8, 3), nn.Conv2d(8, 4, 1)), IMAGES)
    assert [g.name for g in graph.groups] == ["1"]


class StandardisedConvolution(nn.Conv2d):
    """Weight standardisation written with a batch norm."""

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(rows, None, None, training=True, momentum=0.0).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias)


def test_weights_standardised_by_a_batch_norm_are_pruned_inexactly() -> None:
    network = nn.Sequential(StandardisedConvolution(3, 16, 3), nn.ReLU(), StandardisedConvolution(16, 4, 3))
    report = check_oracle(network, IMAGES)
    assert [(g.size, g.exact) for g in report.graph.groups] == [(16, False)]


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_layers_under_spectral_norm_are_pruned(norm: Callable[[nn.Module], nn.Module]) -> None:
    network = nn.Sequential(nn.Conv1d(1, 16, 3), nn.ReLU(), norm(nn.Conv1d(16, 12, 3)), nn.Conv1d(12, 3, 1))
    report = check_oracle(network, torch.randn(2, 1, 16))
    assert [(g.name, g.size) for g in report.graph.groups] == [("0", 16), ("2", 12)]


def test_a_gate_expanded_to_the_channels_prunes_with_them() -> None:
    def middle(m: Gated, x: Tensor) -> Tensor:
        y = m.first(x) * m.gate.view(1, -1, 1, 1)
        return y * y.amax(1, keepdim=True).sigmoid().expand_as(y)

    assert [g.size for g in check_oracle(Gated(middle), IMAGES).graph.groups] == [16]


def test_tracing_under_autocast_finds_the_same_groups() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 1))
    with torch.autocast("cpu", torch.bfloat16):
        graph = cw.trace(network, IMAGES)
    assert [g.name for g in graph.groups] == ["0", "3"]


def test_a_model_that_cannot_be_copied_is_named_as_such() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1))
    network.lock = threading.Lock()
    with pytest.raises(UnsupportedModelError, match="deepcopy"):
        cw.trace(network, IMAGES)


def test_costs_of_something_that_is_no_selection_are_refused() -> None:
    graph = cw.trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)), IMAGES)
    with pytest.raises(InvalidArgumentError, match="selection"):
        graph.macs({"0": 4})  # type: ignore[arg-type]


class Unfixable(nn.Conv2d):
    """A convolution whose fixer does not work."""


@cw.fixer(Unfixable)
def _fails(module: nn.Module, sizes: object) -> None:
    raise RuntimeError("no idea")


def test_channels_of_a_module_that_surgery_cannot_fix_stay_with_the_true_reason(
    caplog: pytest.LogCaptureFixture,
) -> None:
    network = nn.Sequential(Unfixable(3, 8, 3), nn.Unflatten(1, (2, 4)), nn.Flatten(1, 2), nn.Conv2d(8, 4, 1))
    graph = cw.trace(network, IMAGES)
    assert not graph.groups
    assert why(graph, "0") == {(Cause.CODE, "1")}
    assert "no idea" in str(graph.frozen)
    assert "no idea" in caplog.text
