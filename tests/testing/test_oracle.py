"""The oracle itself: it has to see a wrong model wherever in a network the mistake is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from channelwise import api
from channelwise.selection import Selection, removed_channels
from channelwise.structure import Structure
from channelwise.testing import check_oracle, oracle
from channelwise.testing.outputs import TOLERANCE, Comparison
from tests.networks import NETWORKS


def test_wrong_pruning_shows_at_the_end_of_a_deep_network(monkeypatch: pytest.MonkeyPatch) -> None:
    layers: list[nn.Module] = []
    for i in range(24):
        layers += [nn.Conv2d(8 if i else 3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.SiLU()]
    slim = api.slim_model

    def swapped(*args: Any, **kwargs: Any) -> nn.Module:
        model = slim(*args, **kwargs)
        with torch.no_grad():
            model[0].weight[[0, 1]] = model[0].weight[[1, 0]].clone()  # type: ignore[index]
        return model

    network, images = nn.Sequential(*layers), torch.randn(2, 3, 16, 16)
    check_oracle(network, images)
    monkeypatch.setattr(api, "slim_model", swapped)
    monkeypatch.setattr(Comparison, "in_train_mode", lambda *_: True)
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
    slim = api.slim_model

    def swapped(*args: Any, **kwargs: Any) -> nn.Module:
        model = slim(*args, **kwargs)
        with torch.no_grad():
            model[2].weight[:, [0, 1]] = model[2].weight[:, [1, 0]].clone()  # type: ignore[index]
        return model

    images = torch.randn(2, 3, 8, 8)
    assert check_oracle(network, images).changed > 0
    monkeypatch.setattr(api, "slim_model", swapped)
    with pytest.raises(AssertionError, match="in eval mode"):
        check_oracle(network, images)


class Displacement(nn.Module):
    """Adds its output to a large coordinate and takes that away again, which rounds in single precision."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (1000 + self.head(self.body(x).relu())) - 1000


def _scaled_by(factor: float) -> Callable[..., nn.Module]:
    slim = api.slim_model

    def scaled(*args: Any, **kwargs: Any) -> nn.Module:
        model = slim(*args, **kwargs)
        with torch.no_grad():
            model.head.weight.mul_(factor)  # type: ignore[union-attr, operator]
        return model

    return scaled


def test_rounding_that_a_difference_of_large_numbers_blows_up_is_no_mismatch(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network, images = Displacement(), torch.randn(2, 3, 48, 48)
    monkeypatch.setattr(api, "slim_model", _scaled_by(1 + 4e-6))
    monkeypatch.setattr(oracle, "check_state_dicts", lambda *_: None)
    report = check_oracle(network, images, dtype=torch.float32)
    assert report.error > TOLERANCE[torch.float32]
    assert any("rounding of the inputs changes" in said for said in report.raised)
    with pytest.raises(AssertionError, match="in eval mode"):
        check_oracle(network, images, dtype=torch.float32, allow_rounding=False)


def test_more_than_what_rounding_changes_is_a_mismatch(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network, images = Displacement(), torch.randn(2, 3, 48, 48)
    monkeypatch.setattr(api, "slim_model", _scaled_by(1.002))
    with pytest.raises(AssertionError, match="in eval mode"):
        check_oracle(network, images, dtype=torch.float32)


def test_outputs_in_training_that_are_the_sign_of_rounding_are_not_compared() -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(4, 16)]
    for _ in range(6):
        layers += [nn.BatchNorm1d(16), nn.Linear(16, 16)]
    one = torch.randn(1, 4, dtype=torch.float64)
    assert not check_oracle(nn.Sequential(*layers), torch.cat([one, one * (1 + 1e-13)])).compared_in_training
    assert check_oracle(nn.Sequential(*layers), torch.randn(8, 4)).compared_in_training


class Centred(nn.Module):
    """Subtracts the mean over the channels of a convolution, which no masked model can stand for, and adds a gate."""

    def __init__(self, gate: Callable[[torch.Tensor], Any] = lambda x: 1) -> None:
        super().__init__()
        self.first, self.head, self.gate = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), gate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.head((x - x.mean(1, keepdim=True)) * self.gate(x))


def _reads_the_first(model: nn.Module, structure: Structure, selection: Selection, **options: Any) -> nn.Module:
    """A wrong slice: the head reads as many channels as are kept, but the weights of the first ones."""
    slim = slim_model(model, structure, selection, **options)
    if removed_channels(structure, selection):
        with torch.no_grad():
            slim.head.weight.copy_(model.head.weight[:, : slim.head.in_channels])  # type: ignore[union-attr, index, operator]
    return slim


slim_model = api.slim_model
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_a_wrong_slice_shows_where_no_masked_model_can_stand_for_the_removal(monkeypatch: pytest.MonkeyPatch) -> None:
    report = check_oracle(Centred(), IMAGES)
    assert [group.slim_only for group in report.graph.groups] == [True]
    assert report.compared_in_training
    assert not report.uncompared
    monkeypatch.setattr(api, "slim_model", _reads_the_first)
    with pytest.raises(AssertionError, match=r"model that leaves removed channels out .* in eval mode"):
        check_oracle(Centred(), IMAGES)


def test_numbers_made_of_sizes_are_taken_from_the_slim_model_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    network = NETWORKS["weight_standardisation"]
    report = check_oracle(network.model(), network.inputs())
    assert "eval mode: mul by (36,) for (72,)" in report.granted
    monkeypatch.setattr(api, "slim_model", _reads_the_first)
    with pytest.raises(AssertionError, match="in eval mode"):
        check_oracle(network.model(), network.inputs())


def test_what_cannot_be_compared_is_reported() -> None:
    """All channels of the full model are asked whether they are small, those that count as removed, too."""
    report = check_oracle(Centred(lambda x: (x > -100).all(1, keepdim=True)), IMAGES)
    assert report.uncompared == ("first in eval mode: all", "first in train mode: all")
    assert not report.compared_in_training


@pytest.mark.parametrize(
    ("gate", "said"), [(lambda x: x / x.detach() - 1, "do not change"), (lambda x: 1 / (x - x.detach()), "finite")]
)
def test_outputs_that_tell_nothing_are_refused(gate: Callable[[torch.Tensor], Any], said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        check_oracle(Centred(gate), IMAGES)


def test_outputs_that_tell_nothing_may_be_accepted() -> None:
    assert check_oracle(Centred(lambda x: x / x.detach() - 1), IMAGES, telling=False).changed == 0
