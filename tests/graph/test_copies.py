"""Copies that are views where one channel is left: code that writes into them would change another tensor."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import channelwise
from channelwise.testing import check_oracle
from tests.graph.random_networks.selections import Choice


def shuffled(x: Tensor) -> Tensor:
    """A shuffle of two groups of channels."""
    n, c, *space = x.shape
    return x.view(n, 2, c // 2, *space).transpose(1, 2).contiguous().view(n, c, *space)


def swapped(x: Tensor) -> Tensor:
    """Rows of pixels, then rows of channels."""
    n, c, h, w = x.shape
    return x.view(n, c, h * w).transpose(1, 2).reshape(n, h * w * c)


def later(x: Tensor) -> tuple[Tensor, Tensor]:
    return shuffled(x).relu_(), x


def by_another_name(x: Tensor) -> tuple[Tensor, Tensor]:
    y = shuffled(x)
    y.view(-1).mul_(2)
    return y, x


def twice(x: Tensor) -> tuple[Tensor, Tensor]:
    return shuffled(shuffled(x)).add_(1), x


def of_the_source(x: Tensor) -> tuple[Tensor, Tensor]:
    y = shuffled(x)
    return y, x.mul_(2)


def rows(x: Tensor) -> tuple[Tensor, Tensor]:
    return swapped(x).relu_().view_as(x), x


def last_in_memory(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.contiguous(memory_format=torch.channels_last).relu_(), x


def kept_for_backward(x: Tensor) -> tuple[Tensor, ...]:
    return (shuffled(x.sigmoid()).mul_(2),)


def read_before(x: Tensor) -> tuple[Tensor, Tensor]:
    squares = x * x
    return squares, shuffled(x).relu_()


MUST_STAY = (later, by_another_name, twice, of_the_source, rows, last_in_memory, kept_for_backward, read_before)


def only_the_copy(x: Tensor) -> tuple[Tensor, ...]:
    return (shuffled(x).relu_(),)


def out_of_place(x: Tensor) -> tuple[Tensor, Tensor]:
    return shuffled(x).relu(), x


def before(x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.relu_()
    return shuffled(x), x


def windows(x: Tensor) -> tuple[Tensor, Tensor]:
    n, c, h, w = x.shape
    y = x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(n, -1, 4, c)
    return y.mul_(2).mean(1).transpose(1, 2)[..., None].expand(n, c, 4, 1).reshape(n, c, 2, 2), F.avg_pool2d(x, 2)


def half(x: Tensor) -> tuple[Tensor, Tensor]:
    y, _ = x.chunk(2, 1)
    return torch.cat([y.contiguous().mul_(2), y], 1), x


def by_the_function(x: Tensor) -> tuple[Tensor, Tensor]:
    return F.channel_shuffle(x, 2).relu_(), x


CAN_GO = (only_the_copy, out_of_place, before, windows, half, by_the_function)

Body = Callable[[Tensor], tuple[Tensor, ...]]


class Network(nn.Module):
    """Wide enough that verification has no reason to try what one channel of each part gives."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body, self.stem = body, nn.Conv2d(3, 48, 1)
        self.heads = nn.ModuleList(nn.Conv2d(48, 4, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return sum(head(y).mean((2, 3)) for head, y in zip(self.heads, self.body(self.stem(x)), strict=False))


@pytest.mark.parametrize("body", MUST_STAY + CAN_GO)
def test_what_is_copied_and_written_into(body: Body) -> None:
    for how in ("share", "one kept"):
        graph = check_oracle(Network(body), torch.randn(2, 3, 4, 4), select=Choice(how, 0.5, seed=0)).graph
        stays = [reason for frozen in graph.structure.frozen for reason in frozen.reasons]
        assert any("copied and written into" in reason.text for reason in stays) == (body in MUST_STAY)


class InTraining(Network):
    """Written into in train mode only."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return self.heads[0](F.dropout(shuffled(y), 0.5, self.training, inplace=True)) + self.heads[1](y)


def test_in_training() -> None:
    graph = channelwise.trace(InTraining(later), torch.randn(2, 3, 4, 4))
    assert not graph.groups
    assert "copied and written into" in str(graph).replace("\n", " ")


class Weight(nn.Module):
    """A copy of a parameter is written into: of one channel it would be the parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.weight = nn.Conv2d(3, 24, 1), nn.Parameter(torch.randn(24, 32))
        self.head = nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.t().contiguous().mul_(2)
        return self.head(F.conv2d(self.stem(x), weight[:, :, None, None]))


def test_of_a_parameter() -> None:
    graph = channelwise.trace(Weight(), torch.randn(2, 3, 4, 4))
    assert not graph.groups
    assert "let the code make a new tensor" in str(graph).replace("\n", " ")
