"""The nearest counts around a start are found, and a start that is near enough stays."""

import numpy as np

from channelwise.cost import cost_model
from channelwise.select.nearest import nearest_counts
from channelwise.select.widths import allowed_widths
from tests.handmade import chain


def test_the_start_is_kept_when_it_meets_the_target():
    structure = chain([64, 32])
    start = np.array([40, 20])
    evaluate = cost_model(structure).macs
    assert nearest_counts(evaluate, allowed_widths(structure), start, float(evaluate(start))).tolist() == [40, 20]


def test_two_groups_may_move_against_each_other():
    structure = chain([64] * 12)
    evaluate = cost_model(structure).macs
    start = np.full(12, 40)
    wanted = start.copy()
    wanted[[0, 7]] += [1, -1]
    target = float(evaluate(wanted))
    assert float(evaluate(nearest_counts(evaluate, allowed_widths(structure), start, target))) == target


def test_counts_stay_within_what_is_allowed():
    structure = chain([64, 32, 16])
    widths = allowed_widths(structure, channel_divisible=8, limits=0.5)
    evaluate = cost_model(structure).macs
    for target in np.linspace(0.01, 1, 15) * float(evaluate(np.array([64, 32, 16]))):
        counts = nearest_counts(evaluate, widths, np.array([48, 24, 16]), target)
        assert (counts >= widths.low).all()
        assert (counts % 8 == 0).all()


def test_a_start_without_freedom_is_returned():
    structure = chain([8])
    widths = allowed_widths(structure, full={"net.0.conv"})
    assert nearest_counts(cost_model(structure).macs, widths, np.array([8]), 1.0).tolist() == [8]
