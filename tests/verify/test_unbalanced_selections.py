"""Code that is right for balanced selections only: its channels stay, or go with those it takes to be as many."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import channelwise as cw
from channelwise.structure import Cause
from channelwise.testing import check_oracle
from tests.networks.expectations import why

PICKS: dict[str, Callable[[Tensor], Tensor]] = {
    "halves": lambda x: torch.cat([x[:, : x.shape[1] // 2].relu(), x[:, x.shape[1] // 2 :].sigmoid()], 1),
    "quarter": lambda x: torch.cat([x[:, : x.shape[1] // 4].relu(), x[:, x.shape[1] // 4 :]], 1),
    "every_second": lambda x: x[:, ::2],
    "every_second_twice": lambda x: torch.cat([x[:, ::2].relu(), x[:, 1::2]], 1),
    "every_third": lambda x: x[:, 1::3],
    "fixed_number": lambda x: torch.cat([x[:, :3].relu(), x[:, 3:]], 1),
    "last_ones": lambda x: torch.cat([x[:, :-3].relu(), x[:, -3:]], 1),
}


class Picks(nn.Module):
    """A convolution, a batch norm and a head that reads what a function leaves of the channels."""

    def __init__(self, pick: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.norm, self.pick = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), pick
        self.head = nn.Conv2d(pick(torch.zeros(1, 8, 2, 2)).shape[1], 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pick(self.norm(self.first(x))))


@pytest.mark.parametrize("name", PICKS)
def test_no_selection_is_silently_wrong(name: str) -> None:
    for seed in range(5):
        check_oracle(Picks(PICKS[name]), torch.randn(2, 3, 8, 8), seed=seed)


def test_strides_are_named_as_the_reason() -> None:
    graph = cw.trace(Picks(PICKS["every_third"]), torch.randn(2, 3, 8, 8))
    assert why(graph, "first") == {(Cause.FIXED, "")}


def test_equal_pieces_go_on_being_pruned() -> None:
    pick = Picks(lambda x: torch.cat([part.relu() for part in x.chunk(2, 1)], 1))
    assert check_oracle(pick, torch.randn(2, 3, 8, 8)).prunable > 0.6


class SameWidthTwice(nn.Module):
    """A lambda layer: values are laid out by the width of the input, so both must keep as many channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.between = nn.Conv2d(3, 24, 3), nn.Conv2d(24, 24, 1)
        self.values, self.head = nn.Conv2d(24, 24, 1), nn.Conv2d(24, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        n, c, h, w = x.shape
        return self.head(self.values(self.between(x).relu()).flatten(2).reshape(n, c, h, w))


def test_groups_that_need_to_keep_equally_many_without_saying_so_go_together() -> None:
    report = check_oracle(SameWidthTwice(), torch.randn(2, 3, 8, 8))
    assert [set(group.layers) for group in report.graph.groups] == [{"first", "values"}, {"between"}]
