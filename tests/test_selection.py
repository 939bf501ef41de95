"""Selections know the network they were made in: no other one takes them, and every trace of the same one does."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import channelwise as cw
from channelwise.errors import InvalidArgumentError


def network(kernel: int = 3, classes: int = 5, width: int = 8) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, kernel), nn.ReLU(), nn.Conv2d(width, 6, 3), nn.ReLU(), nn.Flatten(2), nn.Linear(16, classes)
    )


def traced(batch: int = 2, side: int = 8, **options: Any) -> cw.ChannelGraph:
    return cw.trace(network(**options), torch.randn(batch, 3, side, side))


WAYS: dict[str, Callable[[cw.Selection], cw.Selection]] = {
    "itself": lambda selection: selection,
    "json": lambda selection: cw.Selection.from_json(json.loads(json.dumps(selection.to_json()))),
    "pickle": lambda selection: pickle.loads(pickle.dumps(selection)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({"classes": 7}, r"5.weight has the shape \(5, 16\) there and \(7, 16\) here"),
        ({"kernel": 1, "side": 6}, r"0.weight has the shape \(8, 3, 3, 3\) there and \(8, 3, 1, 1\) here"),
        ({"width": 10}, r"0.weight has the shape \(8, 3, 3, 3\) there and \(10, 3, 3, 3\) here"),
    ],
)
def test_a_selection_of_another_network_is_refused(way: str, other: dict[str, Any], difference: str) -> None:
    selection = WAYS[way](traced().select(sparsity=0.5))
    graph = traced(**other)
    for use in (graph.slim, graph.sparse, graph.macs, graph.params):
        with pytest.raises(InvalidArgumentError, match=f"of another network: {difference}.*selection.kept"):
            use(selection)


class Joined(nn.Module):
    def __init__(self, swapped: bool) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 8), nn.Linear(3, 8), nn.Linear(16, 2)
        self.swapped = swapped

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.a(x), self.b(x)
        return self.c(torch.cat([b, a] if self.swapped else [a, b], 1))


def test_another_wiring_of_the_same_tensors_is_refused() -> None:
    one, other = (cw.trace(Joined(swapped), torch.randn(2, 3)) for swapped in (True, False))
    with pytest.raises(InvalidArgumentError, match="all tensors have the same shapes, but other channels go together"):
        other.slim(one.select(sparsity=0.5))


@pytest.mark.parametrize("way", WAYS)
def test_every_trace_of_the_same_network_takes_a_selection(way: str) -> None:
    selection = WAYS[way](traced().select(sparsity=0.5))
    for graph in (traced(batch=1), traced(batch=5), cw.trace(network().double(), torch.randn(2, 3, 8, 8).double())):
        assert graph.slim(selection)[0].out_channels == 4


def test_a_selection_made_by_hand_is_taken_wherever_its_groups_fit() -> None:
    selection = traced().select(sparsity=0.5)
    graph = traced(classes=7)
    for plain in (cw.Selection(selection.kept), cw.Selection.from_json({"kept": selection.to_json()["kept"]})):
        assert plain == selection
        assert graph.slim(plain)[0].out_channels == 4


@pytest.mark.parametrize(
    "network", [3, {}, {"digest": "a"}, {"digest": "a", "tensors": {"w": [1.5]}}, {"digest": 1, "tensors": {}}]
)
def test_a_damaged_network_is_refused(network: Any) -> None:
    data = {**traced().select(sparsity=0.5).to_json(), "network": network}
    with pytest.raises(InvalidArgumentError, match="'network' of a selection is an object"):
        cw.Selection.from_json(data)
