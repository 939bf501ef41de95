"""What is said about groups beside their names and sizes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import channelwise as cw
from channelwise.report.inspection import group_remarks, inspection


class Remarkable(nn.Module):
    """A plain group, and two of which every channel is several outputs of its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.runs, self.parts = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 1), nn.Conv2d(4, 8, 1)
        self.normed, self.head = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.pixel_shuffle(self.runs(self.plain(x)), 2)
        a, b = self.parts(x).chunk(2, 1)
        return self.head(nn.functional.normalize(self.normed(a * b.sigmoid()), dim=1))


def test_remarks_name_what_is_special_about_a_group() -> None:
    graph = cw.trace(Remarkable(), torch.randn(2, 3, 4, 4))
    remarks = {group.name: group_remarks(group) for group in graph.groups}
    assert remarks["plain"] == []
    assert remarks["runs"] == ["each is 4 outputs of runs"]
    assert remarks["parts"] == ["each is 2 outputs of parts"]
    assert "each is 4 outputs of runs" in str(graph)


class Averaged(nn.Module):
    """A group whose norm counts kept channels in sparse models, and one of which the network itself takes a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 1), nn.GroupNorm(1, 8)
        self.second, self.head = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.norm(self.first(x)))
        return self.head(x - x.mean(1, keepdim=True))


def test_slim_only_are_groups_that_no_sparse_model_can_stand_for() -> None:
    structure = cw.trace(Averaged(), torch.randn(2, 3, 4, 4)).structure
    rows = {row["name"]: row for row in inspection(structure)["groups"]}
    assert {name: row["slim_only"] for name, row in rows.items()} == {"first": False, "second": True}
    assert rows["first"]["remarks"] == []
    assert rows["second"]["remarks"][0].startswith("slim only: reduced over channels")
