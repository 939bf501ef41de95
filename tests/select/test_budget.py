"""Budgets are solved: nearest to the target, along the profile, within the rules, or refused with the range."""

import itertools
import logging

import numpy as np
import pytest

from channelwise.cost import cost_model, macs, params
from channelwise.errors import InvalidArgumentError, NothingToPruneError, UnreachableTargetError
from channelwise.select import budget
from channelwise.select.budget import counts_for_sparsity, reachable, solve_budget
from channelwise.select.widths import allowed_widths
from tests.handmade import chain

WIDE = chain([64, 64, 128, 128, 256, 256, 512, 96, 48, 40])


def share(structure, counts, cost=macs):
    return cost(structure, counts) / cost(structure, structure.full())


@pytest.mark.parametrize("cost", ["macs", "params"])
@pytest.mark.parametrize("target", [0.03, 0.25, 0.5, 0.77, 0.99])
@pytest.mark.parametrize("divisor", [1, 2, 8])
def test_a_wide_network_hits_its_target_closely(cost, target, divisor):
    counts = solve_budget(WIDE, target, cost, widths=allowed_widths(WIDE, channel_divisible=divisor))
    reached = share(WIDE, counts, macs if cost == "macs" else params)
    assert reached == pytest.approx(target, rel=2e-3)


@pytest.mark.parametrize("target", np.linspace(0.15, 1, 18).tolist())
def test_with_a_coarse_divisor_no_selection_is_nearer(target):
    structure = chain([48, 32, 64])
    widths = allowed_widths(structure, channel_divisible=16)
    best = min(
        (abs(share(structure, dict(zip(structure.full(), counts, strict=True))) - target))
        for counts in itertools.product(range(16, 49, 16), range(16, 33, 16), range(16, 65, 16))
    )
    reached = share(structure, solve_budget(structure, target, widths=widths))
    assert abs(reached - target) <= max(best, 0.001 * target) + 1e-12


def test_of_two_equally_near_selections_the_cheaper_is_taken():
    structure = chain([2])
    full, half = macs(structure, {"net.0.conv": 2}), macs(structure, {"net.0.conv": 1})
    assert solve_budget(structure, (full + half) / 2 / full) == {"net.0.conv": 1}


def test_without_a_profile_all_groups_lose_about_the_same_share():
    counts = solve_budget(WIDE, 0.4)
    kept = [counts[g.name] / g.size for g in WIDE.groups]
    slack = [2 / g.size for g in WIDE.groups]
    assert all(abs(k - np.median(kept)) <= s for k, s in zip(kept, slack, strict=True))


def test_before_single_steps_a_smaller_target_never_keeps_more_of_any_group(monkeypatch):
    monkeypatch.setattr(budget, "nearest_counts", lambda evaluate, widths, start, *_: start)
    widths = allowed_widths(WIDE, channel_divisible=4)
    previous = WIDE.full()
    for target in np.linspace(1, 0.02, 60):
        counts = solve_budget(WIDE, float(target), widths=widths)
        assert all(counts[name] <= previous[name] for name in counts)
        previous = counts


def test_groups_that_step_together_are_stepped_one_by_one(monkeypatch):
    monkeypatch.setattr(budget, "nearest_counts", lambda evaluate, widths, start, *_: start)
    structure = chain([64] * 12)
    counts = solve_budget(structure, 0.5, widths=allowed_widths(structure, channel_divisible=32))
    assert sorted(set(counts.values())) == [32, 64]


def test_single_steps_move_groups_by_one_step_only(monkeypatch):
    widths = allowed_widths(WIDE, channel_divisible=2)
    nearest = solve_budget(WIDE, 0.5, widths=widths)
    monkeypatch.setattr(budget, "nearest_counts", lambda evaluate, widths, start, *_: start)
    start = solve_budget(WIDE, 0.5, widths=widths)
    assert all(abs(nearest[name] - start[name]) <= 2 for name in start)


def test_a_mapping_sets_the_proportions_and_leaves_other_groups_full():
    counts = solve_budget(WIDE, 0.7, profile={"net.4.conv": 0.2, "net.5.conv": 0.4})
    removed = {g.name: 1 - counts[g.name] / g.size for g in WIDE.groups}
    assert {name for name, r in removed.items() if r} == {"net.4.conv", "net.5.conv"}
    assert removed["net.5.conv"] == pytest.approx(2 * removed["net.4.conv"], abs=0.02)
    assert share(WIDE, counts) == pytest.approx(0.7, rel=0.005)


def test_a_callable_gives_the_sparsities_of_a_severity():
    heavy = np.array([0.9 if g.size > 100 else 0.1 for g in WIDE.groups])
    counts = solve_budget(WIDE, 0.4, profile=lambda t: t * heavy)
    removed = {g.size: 1 - counts[g.name] / g.size for g in WIDE.groups}
    assert removed[512] > 5 * removed[64] > 0
    assert share(WIDE, counts) == pytest.approx(0.4, rel=1e-3)


def test_a_profile_may_jump_as_measured_tables_do():
    names = list(WIDE.full())
    counts = solve_budget(WIDE, 0.5, profile=lambda t: dict.fromkeys(names, 0.8 if t > 0.3 else 0.1))
    removed = [1 - counts[g.name] / g.size for g in WIDE.groups]
    assert share(WIDE, counts) == pytest.approx(0.5, rel=1e-3)
    assert max(removed) - min(removed) < 0.1


def test_a_profile_that_ends_too_early_goes_on_to_the_allowed_minimum():
    low, _ = reachable(WIDE)
    counts = solve_budget(WIDE, 2 * low, profile=lambda t: 0.3 * t)
    assert share(WIDE, counts) == pytest.approx(2 * low, rel=0.01)


@pytest.mark.parametrize("values", [[0.5], {"nope": 0.5}, 1.5, np.array([0.5]), None])
def test_a_profile_that_gives_no_sparsities_is_refused(values):
    with pytest.raises(InvalidArgumentError):
        solve_budget(WIDE, 0.5, profile=lambda t: values)


def test_rules_hold_in_the_solution():
    structure = chain([48, 60, 96, 6], parts=3)
    widths = allowed_widths(structure, channel_divisible=4, min_channels=20, limits={"net.2.conv": 0.25})
    counts = solve_budget(structure, 0.5, widths=widths)
    assert counts["net.3.conv"] == 6
    assert counts["net.2.conv"] >= 72
    assert all(counts[f"net.{i}.conv"] % 12 == 0 and counts[f"net.{i}.conv"] >= 20 for i in range(3))


def test_the_reachable_range_is_that_of_the_narrowest_and_widest_selection():
    structure = chain([8, 16])
    low = macs(structure, {"net.0.conv": 4, "net.1.conv": 4}) / macs(structure, structure.full())
    assert reachable(structure, widths=allowed_widths(structure, channel_divisible=4)) == (low, 1.0)


def test_an_unreachable_target_states_the_range_as_share_and_macs():
    structure = chain([8, 16])
    widths = allowed_widths(structure, channel_divisible=8)
    low = macs(structure, {"net.0.conv": 8, "net.1.conv": 8})
    full = macs(structure, structure.full())
    with pytest.raises(UnreachableTargetError) as caught:
        solve_budget(structure, 0.1, widths=widths)
    for text in ("macs=0.1", f"{low / full:.4f} to 1.0000", f"{low / 1e3:.3f} k", f"{full / 1e3:.3f} k"):
        assert text in str(caught.value)


def test_a_target_above_what_is_left_of_a_pruned_model_is_unreachable():
    dead = {"net.0.conv": np.arange(64) < 32}
    structure = chain([64])
    with pytest.raises(UnreachableTargetError, match=r"to 0\.5000 of its MACs"):
        solve_budget(structure, 0.9, widths=allowed_widths(structure, dead=dead))


def test_a_target_missed_by_rounding_gets_the_end_of_the_range():
    dead = {g.name: np.arange(g.size) < g.size // 4 for g in WIDE.groups}
    widths = allowed_widths(WIDE, dead=dead)
    _, high = reachable(WIDE, widths=widths)
    assert share(WIDE, solve_budget(WIDE, high * 1.004, widths=widths)) == high


def test_a_full_budget_keeps_everything():
    assert solve_budget(WIDE, 1.0) == WIDE.full()


def test_a_far_miss_is_logged_with_the_step(caplog):
    structure = chain([64, 64])
    with caplog.at_level(logging.WARNING):
        solve_budget(structure, 0.7, widths=allowed_widths(structure, channel_divisible=32))
    assert "steps of up to 32 channels" in caplog.text


def test_without_a_free_group_there_is_nothing_to_prune():
    structure = chain([8])
    with pytest.raises(NothingToPruneError, match="No channel group is left"):
        solve_budget(structure, 0.5, widths=allowed_widths(structure, full={"net.0.conv"}))


def test_a_profile_of_zeros_cannot_be_scaled():
    with pytest.raises(NothingToPruneError, match="All sparsities are 0"):
        solve_budget(WIDE, 0.5, profile={"net.0.conv": 0.0})


def test_sparsities_become_the_nearest_counts():
    assert counts_for_sparsity(chain([8, 10]), 0.25) == {"net.0.conv": 6, "net.1.conv": 8}
    assert counts_for_sparsity(chain([8, 10]), {"net.1.conv": 0.9}) == {"net.0.conv": 8, "net.1.conv": 1}


def test_a_solution_is_found_with_few_evaluations(monkeypatch):
    """The bound of 20 ms a budget rests on this; time itself is measured by the benchmarks."""
    structure = chain([64, 128, 256] * 40)
    model = cost_model(structure)
    calls = []
    monkeypatch.setattr(model, "cost", lambda kind: lambda counts: calls.append(np.ndim(counts)) or model.macs(counts))
    solve_budget(structure, 0.5)
    assert calls.count(2) <= 12
    assert len(calls) <= 35
