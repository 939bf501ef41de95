"""Copies that are none where one channel is left: code that writes into them would change another tensor."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from channelwise.testing import check_oracle
from tests.random_networks.selections import Choice


def shuffled(x: Tensor) -> Tensor:
    """A shuffle of two groups of channels."""
    n, c, *space = x.shape
    return x.view(n, 2, c // 2, *space).transpose(1, 2).contiguous().view(n, c, *space)


def later(x: Tensor) -> tuple[Tensor, Tensor]:
    return shuffled(x).relu_(), x


def by_another_name(x: Tensor) -> tuple[Tensor, Tensor]:
    y = shuffled(x)
    y.view(-1).mul_(2)
    return y, x


def twice(x: Tensor) -> tuple[Tensor, Tensor]:
    return shuffled(x).contiguous(memory_format=torch.channels_last).add_(1), x


def of_the_source(x: Tensor) -> tuple[Tensor, Tensor]:
    y = shuffled(x)
    return y, x.mul_(2)


def tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.flatten(2).transpose(1, 2).contiguous().relu_().transpose(1, 2).reshape(x.shape), x


def last_in_memory(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.contiguous(memory_format=torch.channels_last).relu_(), x


def kept_for_backward(x: Tensor) -> tuple[Tensor, ...]:
    return (shuffled(x.sigmoid()).mul_(2),)


def kept_as_it_was_written(x: Tensor) -> tuple[Tensor, ...]:
    return (shuffled(F.leaky_relu(x, inplace=True)).mul_(2),)


def read_before(x: Tensor) -> tuple[Tensor, Tensor]:
    squares = x * x
    return squares, shuffled(x).relu_()


TWO_STAY = (
    later,
    by_another_name,
    twice,
    of_the_source,
    tokens,
    last_in_memory,
    kept_for_backward,
    kept_as_it_was_written,
    read_before,
)


def only_the_copy(x: Tensor) -> tuple[Tensor, ...]:
    return (shuffled(x).relu_(),)


def not_kept(x: Tensor) -> tuple[Tensor, ...]:
    return (shuffled(F.relu6(x, inplace=True)).mul_(2),)


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


ONE_STAYS = (only_the_copy, not_kept, out_of_place, before, windows, half, by_the_function)

Body = Callable[[Tensor], tuple[Tensor, ...]]


class Network(nn.Module):
    """Wide enough that verification has no reason to try what one channel of each part gives."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body, self.stem = body, nn.Conv2d(3, 48, 1)
        self.heads = nn.ModuleList(nn.Conv2d(48, 4, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return sum(head(y).mean((2, 3)) for head, y in zip(self.heads, self.body(self.stem(x)), strict=False))


def least_of(model: nn.Module, x: Tensor) -> dict[str, int]:
    """How many channels must stay, by group, if not one; the oracle is run with as few as that."""
    for how in ("share", "one kept"):
        graph = check_oracle(model, x, select=Choice(how, 0.5, seed=0)).graph
    return {group.name: group.least for group in graph.groups if group.least > 1}


@pytest.mark.parametrize("body", TWO_STAY + ONE_STAYS)
def test_what_is_copied_and_written_into(body: Body) -> None:
    assert least_of(Network(body), torch.randn(2, 3, 4, 4)) == ({"stem": 2} if body in TWO_STAY else {})


class InTraining(Network):
    """Written into in train mode only."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return self.heads[0](F.dropout(shuffled(y), 0.5, self.training, inplace=True)) + self.heads[1](y)


def test_in_training() -> None:
    assert least_of(InTraining(later), torch.randn(2, 3, 4, 4)) == {"stem": 2}


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
    assert least_of(Weight(), torch.randn(2, 3, 4, 4)) == {"stem": 2, "weight": 2}
