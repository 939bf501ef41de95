"""Rules: on every small network slim equals masked, and what can go can be pruned."""

from __future__ import annotations

import pytest

from tests.networks import NETWORKS, Network
from tests.networks.expectations import check_network

ELSEWHERE = ("numbers", "other_ways", "verified")
"""Families that stand in the tests of what they are about."""


@pytest.mark.parametrize(
    "network", [pytest.param(n, id=f"{n.family}-{n.name}") for n in NETWORKS.values() if n.family not in ELSEWHERE]
)
def test_removing_equals_zeroing(network: Network) -> None:
    check_network(network)
