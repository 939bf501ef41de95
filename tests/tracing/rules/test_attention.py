"""Rules: attention and batched matrix products: slim equals masked, and what can go can be pruned."""

from __future__ import annotations

import pytest

from tests.networks import Network, of_family
from tests.networks.expectations import check_network


@pytest.mark.parametrize("network", of_family("attention"))
def test_removing_equals_zeroing(network: Network) -> None:
    check_network(network)
