"""Rules: code that is right by chance, nearly right or right in eval mode only is found out, whatever is selected."""

from __future__ import annotations

import pytest
import torch

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
