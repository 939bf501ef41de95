"""Rules: random networks of all operations with rules keep slim and masked models equal, whatever is selected."""

from __future__ import annotations

import os
import secrets

import pytest
from hypothesis import HealthCheck, given, seed, settings

from tests.random_networks import Choice, Plan, check, choices, plans
from tests.random_networks.found import FOUND

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
CHUNKS, OF_EACH = 20, 500


def test_random_networks() -> None:
    """Always the same ones. An engine which freezes all does not pass, nor does an oracle that compares nothing."""
    reports = []

    @settings(max_examples=150, derandomize=True, deadline=None, database=None, suppress_health_check=SLOW)
    @given(plans(), choices())
    def explore(plan: Plan, choice: Choice) -> None:
        reports.append(check(plan, choice))

    explore()
    pruned = [r for r in reports if r.macs[1] < r.macs[0]]
    assert sum(r.prunable for r in reports) / len(reports) > 0.5
    assert sum(r.changed > 0 for r in pruned) / len(pruned) > 0.75  # outputs that are zero by a last relu cannot change
    assert not [what for r in reports for what in (*r.uncompared, *r.granted, *r.raised)]


@pytest.mark.parametrize("name", FOUND)
def test_networks_that_were_wrong(name: str) -> None:
    for how in ("share", "one kept"):
        for number in range(2):
            check(FOUND[name], Choice(how, 0.5, number))


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_many_random_networks(chunk: int) -> None:
    """Other networks at every run; RANDOM_NETWORKS_SEED repeats one."""
    number = int(os.environ.get("RANDOM_NETWORKS_SEED", secrets.randbits(32)))
    print(f"RANDOM_NETWORKS_SEED={number}")

    @seed(number + chunk)
    @settings(max_examples=OF_EACH, deadline=None, database=None, suppress_health_check=SLOW, print_blob=False)
    @given(plans(), choices())
    def explore(plan: Plan, choice: Choice) -> None:
        check(plan, choice)

    explore()
