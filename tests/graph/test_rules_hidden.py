"""Rules: dependencies on channels that no operation shows: slim equals masked, and what can go can be pruned."""

from __future__ import annotations

import pytest

from tests.graph.expectations import check_network
from tests.graph.networks import Network, of_family


@pytest.mark.parametrize("network", of_family("hidden"))
def test_removing_equals_zeroing(network: Network) -> None:
    check_network(network)
