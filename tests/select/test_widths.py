"""Allowed counts respect divisors, equal parts, minimum widths, limits and channels that are gone already."""

import numpy as np
import pytest

from channelwise.errors import InvalidArgumentError
from channelwise.select.widths import allowed_widths, channel_step
from channelwise.structure import Group
from tests.handmade import chain, slots


def ladder(widths, group=0):
    """All counts that stepping down from the top reaches."""
    counts, found = widths.high, []
    while True:
        found.append(int(counts[group]))
        below = widths.below(counts)
        if below[group] == counts[group]:
            break
        assert widths.above(below)[group] == counts[group]
        counts = below
    assert all(widths.nearest(np.array([float(n)] * len(counts)))[group] == n for n in found)
    return found


def test_any_count_but_zero_is_allowed_by_default():
    assert ladder(allowed_widths(chain([4]))) == [4, 3, 2, 1]


def test_counts_are_multiples_of_the_divisor_or_the_full_size():
    assert ladder(allowed_widths(chain([30]), channel_divisible=8)) == [30, 24, 16, 8]


def test_a_group_narrower_than_the_divisor_stays_full():
    assert ladder(allowed_widths(chain([6]), channel_divisible=8)) == [6]


@pytest.mark.parametrize("divisor", [2**31, 10**30])
def test_a_group_stays_full_however_large_the_divisor_is(divisor):
    assert ladder(allowed_widths(chain([6]), channel_divisible=divisor)) == [6]


def test_the_divisor_counts_slots_and_not_channels():
    assert ladder(allowed_widths(chain([8], multiplicity=4), channel_divisible=8)) == [8, 6, 4, 2]


def test_the_divisor_holds_on_every_output_axis():
    entries = (slots("a", 0, [[0, 1]] * 12, "output"), slots("b", 0, [[0, 1, 2]] * 12, "output"))
    assert channel_step(Group("g", 12, entries), 12) == 12
    assert channel_step(Group("g", 12, entries[:1]), 12) == 6


def test_the_divisor_does_not_concern_slots_that_are_only_read():
    entries = (slots("a", 0, [[0, 1, 2, 3]] * 16, "output"), slots("b", 1, range(16), "input"))
    assert channel_step(Group("g", 16, entries), 4) == 1


def test_two_entries_on_one_axis_are_counted_together():
    entries = (slots("a", 0, range(8), "output"), slots("a", 0, range(8, 16), "output"))
    assert channel_step(Group("g", 8, entries), 4) == 2


def test_parts_keep_equally_many_and_never_none():
    assert ladder(allowed_widths(chain([12], parts=3))) == [12, 9, 6, 3]


def test_parts_and_divisor_hold_together():
    assert ladder(allowed_widths(chain([24], parts=3), channel_divisible=4)) == [24, 12]


def test_min_channels_is_rounded_up_to_the_divisor():
    assert ladder(allowed_widths(chain([32]), channel_divisible=8, min_channels=9)) == [32, 24, 16]


def test_a_group_narrower_than_min_channels_stays_full():
    assert ladder(allowed_widths(chain([6]), min_channels=8)) == [6]


def test_limits_bound_the_sparsity_of_groups_by_name():
    widths = allowed_widths(chain([10, 10]), limits={"net.0.conv": 0.3})
    assert widths.low.tolist() == [7, 1]


def test_a_limit_of_nothing_keeps_a_group_full():
    assert ladder(allowed_widths(chain([10]), limits={"net.0.conv": 0})) == [10]


def test_one_limit_may_hold_for_all_groups():
    assert allowed_widths(chain([10, 20]), limits=0.5).low.tolist() == [5, 10]


def test_full_groups_have_no_choice():
    assert allowed_widths(chain([10, 10]), full={"net.1.conv"}).free.tolist() == [True, False]


def test_dead_channels_cap_the_counts():
    dead = {"net.0.conv": np.arange(16) < 5}
    assert ladder(allowed_widths(chain([16]), channel_divisible=4, dead=dead)) == [8, 4]


def test_dead_channels_cap_all_parts_by_the_emptiest():
    dead = {"net.0.conv": np.isin(np.arange(12), [0, 1, 5])}
    assert ladder(allowed_widths(chain([12], parts=3), dead=dead)) == [6, 3]


def test_the_divisor_wins_where_fewer_channels_are_alive():
    dead = {"net.0.conv": np.arange(16) < 14}
    assert ladder(allowed_widths(chain([16]), channel_divisible=4, dead=dead)) == [4]


def test_a_full_group_keeps_its_dead_channels():
    dead = {"net.0.conv": np.arange(16) < 5}
    assert ladder(allowed_widths(chain([16]), full={"net.0.conv"}, dead=dead)) == [16]


def test_halfway_wishes_get_the_larger_count():
    widths = allowed_widths(chain([16]), channel_divisible=4)
    assert widths.nearest(np.array([6.0])).tolist() == [8]
    assert widths.nearest(np.array([5.9])).tolist() == [4]


def test_floating_point_noise_does_not_cost_a_channel():
    widths = allowed_widths(chain([10]), limits=0.7)
    assert widths.low.tolist() == [3]
    assert widths.nearest(np.array([10 * (1 - 0.35)])).tolist() == [7]


@pytest.mark.parametrize("name", ["channel_divisible", "min_channels"])
@pytest.mark.parametrize("value", [0, -2, 1.5, True, "8", None])
def test_divisor_and_minimum_must_be_positive_integers(name, value):
    with pytest.raises(InvalidArgumentError, match=name):
        allowed_widths(chain([8]), **{name: value})


@pytest.mark.parametrize("limits", [1.5, -0.1, True, {"net.0.conv": 2}, {"nope": 0.5}])
def test_limits_must_be_fractions_of_known_groups(limits):
    with pytest.raises(InvalidArgumentError, match="limits"):
        allowed_widths(chain([8]), limits=limits)
