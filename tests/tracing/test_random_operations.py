"""Random operations in the user's code are followed, whatever their probabilities are given as."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import channelwise

RANDOM: dict[str, Callable[[Tensor], Tensor]] = {
    "of itself": lambda x: x * torch.bernoulli(x.sigmoid()),
    "by a tensor": lambda x: x * torch.empty_like(x).bernoulli_(x.sigmoid()),
    "by a number": lambda x: x * torch.empty_like(x).bernoulli_(0.5),
    "never": lambda x: x + torch.empty_like(x).bernoulli_(0),
}


class Noisy(nn.Module):
    def __init__(self, noise: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.noise, self.first, self.head = noise, nn.Conv1d(3, 8, 1), nn.Conv1d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.noise(self.first(x)))


@pytest.mark.parametrize("how", RANDOM)
def test_random_operations_do_not_stop_a_trace(how: str) -> None:
    graph = channelwise.trace(Noisy(RANDOM[how]), torch.randn(2, 3, 6))
    assert not graph.structure.notes
