"""Rules: code that is right by chance, nearly right or right in eval mode only is found out, whatever is selected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import channelwise as cw
from channelwise.structure import Cause
from channelwise.testing import prunable_share
from tests.networks import Network, of_family
from tests.networks.expectations import check_network, why


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("network", of_family("verified"))
def test_removing_equals_zeroing(network: Network, share: float, seed: int) -> None:
    check_network(network, share=share, seed=seed)


@pytest.mark.parametrize("network", of_family("verified"))
def test_doubts_in_single_precision_are_settled(network: Network) -> None:
    check_network(network, dtype=torch.float32)


class PicksTheBest(nn.Module):
    """A detection transformer's choice of queries: scores so near to one another that rounding decides among them."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 128
        self.first, self.scores = nn.Conv2d(3, 256, 3), nn.Conv2d(128, 1, 1)
        self.body, self.head = nn.Conv2d(128, 16, 1), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x).split([self.width, self.width], 1)
        x = a * b.sigmoid()
        best = (self.scores(x).flatten(1) + 1e4).topk(10, 1).indices
        return self.head(self.body(x).flatten(2).transpose(1, 2)[torch.arange(len(x)).unsqueeze(1), best])


def test_what_rounding_picks_is_compared_in_double_precision() -> None:
    torch.manual_seed(0)
    model = PicksTheBest().eval()
    assert prunable_share(model, cw.trace(model, torch.randn(2, 3, 24, 24)).structure) > 0.95


def no_boxes(y: Tensor) -> list[Tensor]:
    return [image[image[:, 3] > 1e6] for image in y.transpose(1, 2)]


def padded(y: Tensor) -> Tensor:
    return torch.where(y > 1e6, y, torch.zeros_like(y))


def array(y: Tensor) -> dict[str, Any]:
    return {"classes": y.numpy()}


def numbers(y: Tensor) -> list[float]:
    return y.flatten().tolist()


def a_class(y: Tensor) -> int:
    return int(y.argmax())


def sparse(y: Tensor) -> Tensor:
    return y.to_sparse()


def nested(y: Tensor) -> Tensor:
    return torch.nested.nested_tensor(list(y))


def no_number(y: Tensor) -> Tensor:
    return y * torch.nan


def nothing(y: Tensor) -> None:
    return None


class Says(nn.Module):
    """A layer whose channels are scaled by what ``scale`` makes of their number, a head, and what is said of it."""

    def __init__(self, say: Callable[[Tensor], Any], scale: Callable[[int], int]) -> None:
        super().__init__()
        self.say, self.scale = say, scale
        self.first, self.head = nn.Conv1d(3, 16, 1), nn.Conv1d(16, 4, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        return self.say(self.head(x * self.scale(x.shape[1])))


SAYINGS = [no_boxes, padded, array, numbers, a_class, sparse, nested, no_number, nothing]


@pytest.mark.parametrize("say", SAYINGS)
def test_wrong_code_is_found_out_whatever_the_network_returns(say: Callable[[Tensor], Any]) -> None:
    graph = cw.trace(Says(say, lambda width: width // 16), torch.randn(2, 3, 8))
    assert not any("first" in group.layers for group in graph.groups)


@pytest.mark.parametrize("say", SAYINGS)
def test_right_code_is_known_whatever_the_network_returns(say: Callable[[Tensor], Any]) -> None:
    graph = cw.trace(Says(say, lambda width: width // width), torch.randn(2, 3, 8))
    assert any("first" in group.layers for group in graph.groups)


class Silent(nn.Module):
    """Both layers may lose channels, and nothing is returned or kept."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(3, 16, 1), nn.Conv1d(3, 16, 1)

    def forward(self, x: Tensor) -> None:
        self.first(x) * self.second(x) * (self.first.weight.shape[0] // 16)


def test_wrong_code_is_found_out_where_nothing_is_returned() -> None:
    graph = cw.trace(Silent(), torch.randn(2, 3, 8))
    assert why(graph, "first") == why(graph, "second") == {(Cause.CODE, "")}


DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda x: F.dropout(x, 0.3),
    "dropout in place": lambda x: F.dropout(x * 1, 0.3, inplace=True),
    "dropout of channels": lambda x: F.dropout1d(x, 0.3),
    "alpha dropout": lambda x: F.alpha_dropout(x, 0.3, True),
    "alpha dropout of channels": lambda x: F.feature_alpha_dropout(x, 0.3, True),
    "native dropout": lambda x: torch.native_dropout(x, 0.3, True)[0],
    "stochastic depth": lambda x: x * x.new_empty(x.shape[0], 1, 1).bernoulli_(0.8).div_(0.8),
    "bernoulli": lambda x: x * torch.bernoulli(torch.full_like(x, 0.5)),
    "rand_like": lambda x: x * torch.rand_like(x),
    "randn_like": lambda x: x + torch.randn_like(x),
    "rand": lambda x: x * torch.rand(x.shape[0], 1, x.shape[2]),
    "randn": lambda x: x + torch.randn(x.shape[0], 1, x.shape[2]),
    "normal": lambda x: x * torch.normal(1.0, 0.1, (x.shape[0], 1, x.shape[2])),
    "uniform_": lambda x: x * torch.empty_like(x).uniform_(0.5, 1.5),
    "normal_": lambda x: x * torch.empty_like(x).normal_(1, 0.2),
    "exponential_": lambda x: x * torch.empty_like(x).exponential_(),
    "randint": lambda x: x * torch.randint(1, 3, (x.shape[0], 1, x.shape[2])),
    "randperm": lambda x: x[:, :, torch.randperm(x.shape[2])],
    "multinomial": lambda x: x[:, :, torch.multinomial(torch.ones(x.shape[2]), 4)],
    "rrelu": lambda x: F.rrelu(x, training=True),
    "attention": lambda x: F.scaled_dot_product_attention(*[x.mT] * 3, dropout_p=0.5, scale=1.0).mT,
}


class TrainsByChance(nn.Module):
    """Something random in train mode only, and channels that are scaled there by what is made of their number."""

    def __init__(self, draw: Callable[[Tensor], Tensor], scale: Callable[[int], int]) -> None:
        super().__init__()
        self.draw, self.scale = draw, scale
        self.first, self.head = nn.Conv1d(3, 16, 1), nn.Conv1d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(self.draw(x) * self.scale(x.shape[1]) if self.training else x)


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_wrong_code_in_train_mode_is_found_out_in_spite_of_chance(draw: Callable[[Tensor], Tensor]) -> None:
    graph = cw.trace(TrainsByChance(draw, lambda width: width // 16), torch.randn(2, 3, 8))
    assert not graph.groups


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_right_code_in_train_mode_is_known_in_spite_of_chance(draw: Callable[[Tensor], Tensor]) -> None:
    graph = cw.trace(TrainsByChance(draw, lambda width: width // width), torch.randn(2, 3, 8))
    assert [group.name for group in graph.groups] == ["first"]


class Keeps(nn.Module):
    """Code that keeps what it made for the sizes it saw last, as detection heads keep their anchors."""

    def __init__(self, make: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1)
        self.register_buffer("stride", torch.tensor(2.0))
        self.make, self.seen, self.kept = make, None, None

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.seen != x.shape:
            self.seen, self.kept = x.shape, self.make(x, self.stride)
        return self.head(x + self.kept)


def position(x: Tensor, stride: Tensor) -> Tensor:
    return torch.arange(x.shape[3]) * stride


def share(x: Tensor, stride: Tensor) -> float:
    return x.shape[1] // 16


def ramp(x: Tensor, stride: Tensor) -> Tensor:
    return (torch.arange(x.shape[1]) * stride)[:, None, None]


@pytest.mark.parametrize("ran_before", [False, True])
@pytest.mark.parametrize(("make", "adapts"), [(position, True), (share, False), (ramp, False)])
def test_what_code_keeps_from_an_earlier_run_is_made_anew(
    make: Callable[[Tensor, Tensor], Any], adapts: bool, ran_before: bool
) -> None:
    torch.manual_seed(0)
    model, x = Keeps(make).eval(), torch.randn(2, 3, 8, 8)
    if ran_before:
        with torch.no_grad():
            model(x)
    assert bool(cw.trace(model, x).groups) == adapts


class Finds(nn.Module):
    """A detector: what scores enough is picked along the classes, which stay, and then what is large enough."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU())
        self.scores, self.boxes = nn.Conv2d(32, 5, 1), nn.Conv2d(32, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        scores, boxes = self.scores(x).flatten(), self.boxes(x).flatten()
        found = torch.where(scores > scores.mean())[0]
        boxes = boxes[found]
        return boxes[torch.where(boxes > boxes.mean())[0]]


def test_what_a_detector_found_is_shown_to_the_slim_model_also_along_its_classes() -> None:
    torch.manual_seed(0)
    model = Finds().eval()
    assert len(cw.trace(model, torch.randn(1, 3, 12, 12)).groups) == 2
