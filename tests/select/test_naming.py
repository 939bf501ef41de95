"""Sparsities and limits find groups by names of layers, patterns, modules and types; a clash or nothing is an error."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import channelwise as cw
from channelwise.errors import InvalidArgumentError


class Residual(nn.Module):
    """Groups: ``stem`` with ``second``, which add up, and ``first``. ``head`` gives the output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.block = nn.Module()
        self.block.first, self.block.second = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        x = x + self.block.second(self.block.first(x.relu()).relu())
        return self.head(x.relu().mean((2, 3)))


MODEL = Residual().eval()
GRAPH = cw.trace(MODEL, torch.randn(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("sparsity", "counts"),
    [
        ({"block.second": 0.5}, {"stem": 4, "block.first": 6}),
        ({"norm": 0.5}, {"stem": 4, "block.first": 6}),
        ({"block.f*": 0.5}, {"stem": 8, "block.first": 3}),
        ({"block": 0.5}, {"stem": 4, "block.first": 3}),
        ({MODEL.block.second: 0.5}, {"stem": 4, "block.first": 6}),
        ({nn.BatchNorm2d: 0.5}, {"stem": 4, "block.first": 6}),
        ({nn.Conv2d: 0.5, "stem": 0.25}, {"stem": 6, "block.first": 3}),
        ({"block.second": 0.5, "norm": 0.5}, {"stem": 4, "block.first": 6}),
        ({"head": 0}, {"stem": 8, "block.first": 6}),
    ],
)
def test_sparsities_by_names_patterns_modules_and_types(sparsity: Any, counts: dict[str, int]) -> None:
    assert GRAPH.select(sparsity=sparsity).counts() == counts


def test_limits_and_proportions_take_the_same_keys() -> None:
    assert GRAPH.select(sparsity=0.5, limits={"block.second": 0.0}).counts() == {"stem": 8, "block.first": 3}
    assert GRAPH.select(params=0.7, sparsity={MODEL.block.first: 0.5}).counts()["stem"] == 8


def test_a_layer_of_a_group_with_another_name_says_which(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        GRAPH.select(sparsity={"block.second": 0.5})
    assert "'block.second' is in the group 'stem'" in caplog.text


@pytest.mark.parametrize(
    ("sparsity", "text"),
    [
        ({"block.second": 0.5, "norm": 0.3}, r"group 'stem' two values: 0.5 by 'block.second' and 0.3 by 'norm'"),
        ({"head": 0.5}, r"'head', of which no channel can be removed: .*output"),
        ({"block.frist": 0.5}, "'block.frist' matches no group.* block.first"),
        ({nn.Conv3d: 0.5}, "the type Conv3d.* it has .*Conv2d"),
        ({nn.Conv2d(8, 8, 1): 0.5}, "a copy, perhaps"),
        ({0: 0.5}, "names, patterns, modules or module types, not 0"),
        ({"block.second": 2}, r"sparsity\['stem'\] must be a number"),
    ],
)
def test_keys_that_mean_nothing_or_clash_are_errors(sparsity: Any, text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=text):
        GRAPH.select(sparsity=sparsity)


def test_where_only_a_groups_own_name_will_do_a_layer_is_told_its_group() -> None:
    with pytest.raises(InvalidArgumentError, match=r"'block.second', a layer of the group 'stem'"):
        GRAPH.slim(cw.Selection({"block.second": [0], "block.first": [0]}))
    with pytest.raises(InvalidArgumentError, match=r"'stemm', which is no channel group .* stem"):
        GRAPH.structure.group("stemm")


def test_a_printed_selection_is_a_short_table() -> None:
    lines = str(GRAPH.select(sparsity={"stem": 0.5})).splitlines()
    assert lines == [
        "keeps 10 of 14 channels in 2 groups",
        "stem             4 of      8    50%",
        "block.first      6 of      6   100%",
    ]
    by_hand = cw.Selection({f"group{i}": [0, 2] for i in range(100)})
    assert "keeps 200 channels in 100 groups" in str(by_hand)
    assert len(str(by_hand)) < 2000
    assert repr(by_hand) == "<Selection: 200 channels in 100 groups>"


@pytest.mark.parametrize("kept", [None, [0, 1], "stem"])
def test_a_selection_is_made_of_groups_and_their_channels(kept: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="channel indices by the name of the group"):
        cw.Selection(kept)
