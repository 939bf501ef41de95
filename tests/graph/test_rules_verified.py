"""Rules: code that is right by chance, nearly right or right in eval mode only is found out, whatever is selected."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import channelwise as cw
from channelwise.testing import prunable_share
from tests.graph.expectations import check_network
from tests.graph.networks import Network, of_family


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
