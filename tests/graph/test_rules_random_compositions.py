"""Rules: random compositions of channel operations keep slim and masked models equal."""

from __future__ import annotations

import pytest
import torch

from channelwise.testing import check_oracle
from tests.graph.networks.random_compositions import RandomComposition


def check(seed: int) -> float:
    torch.manual_seed(seed)
    model = RandomComposition(seed).eval()
    try:
        return check_oracle(model, torch.randn(2, 3, 8, 8), seed=seed).prunable
    except AssertionError as error:
        raise AssertionError("\n".join([*model.story, str(error)])) from error


@pytest.mark.parametrize("seed", range(40))
def test_random_composition(seed: int) -> None:
    check(seed)


def test_most_channels_of_random_compositions_are_prunable() -> None:
    shares = [check(seed) for seed in range(40, 60)]
    assert sum(shares) / len(shares) > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("start", range(60, 1060, 100))
def test_a_hundred_random_compositions(start: int) -> None:
    for seed in range(start, start + 100):
        check(seed)
