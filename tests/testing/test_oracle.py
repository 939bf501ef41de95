"""The oracle itself: it has to see a wrong model wherever in a network the mistake is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from channelwise import channel_graph
from channelwise.testing import check_oracle, oracle


def test_wrong_pruning_shows_at_the_end_of_a_deep_network(monkeypatch: pytest.MonkeyPatch) -> None:
    layers: list[nn.Module] = []
    for i in range(24):
        layers += [nn.Conv2d(8 if i else 3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.SiLU()]
    slim = channel_graph.slim_model

    def swapped(*args: Any, **kwargs: Any) -> nn.Module:
        model = slim(*args, **kwargs)
        with torch.no_grad():
            model[0].weight[[0, 1]] = model[0].weight[[1, 0]].clone()  # type: ignore[index]
        return model

    network, images = nn.Sequential(*layers), torch.randn(2, 3, 16, 16)
    check_oracle(network, images)
    monkeypatch.setattr(channel_graph, "slim_model", swapped)
    monkeypatch.setattr(oracle._Check, "same_outputs_in_training", lambda *_: True)
    with pytest.raises(AssertionError, match="in eval mode"):
        check_oracle(network, images)


class Finder(nn.Module):
    """Looks closer at the pixels that its first head finds: the more, the larger its second output."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.found, self.closer = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 1, 1), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.body(x).relu()
        score = self.found(features)
        return score, self.closer(features.permute(0, 2, 3, 1)[score[:, 0] > 0])


def test_a_network_whose_work_depends_on_what_it_sees_may_return_another_number_of_rows() -> None:
    torch.manual_seed(0)
    network, images = Finder(), torch.randn(1, 3, 12, 12)
    assert check_oracle(network, images, count=False).changed > 0
    with pytest.raises(AssertionError, match=r"output shapes|flop counter"):
        check_oracle(network, images)


def test_wrong_pruning_shows_behind_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(1, 8), nn.Conv2d(8, 4, 1))
    slim = channel_graph.slim_model

    def swapped(*args: Any, **kwargs: Any) -> nn.Module:
        model = slim(*args, **kwargs)
        with torch.no_grad():
            model[2].weight[:, [0, 1]] = model[2].weight[:, [1, 0]].clone()  # type: ignore[index]
        return model

    images = torch.randn(2, 3, 8, 8)
    assert check_oracle(network, images).changed > 0
    monkeypatch.setattr(channel_graph, "slim_model", swapped)
    with pytest.raises(AssertionError, match="in eval mode"):
        check_oracle(network, images)
