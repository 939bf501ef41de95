"""The summary table shows sizes before and after."""

from __future__ import annotations

import pytest

from channelwise.report import Summary
from channelwise.report.summary import quantity


def test_text_has_both_sizes_and_shares() -> None:
    text = str(Summary("Net", macs_before=4.089e9, macs_after=2.0445e9, params_before=1000, params_after=250))
    for expected in ("Net", "4.089 G", "2.045 G", "50.0 %", "1 k", "250", "25.0 %"):
        assert expected in text


def test_removal_ratio_is_the_share_of_macs_removed() -> None:
    assert Summary("Net", 200, 50, 1, 1).removal_ratio == 0.75


@pytest.mark.parametrize(("value", "text"), [(4.089e9, "4.089 G"), (25.56e6, "25.56 M"), (999, "999"), (1500, "1.5 k")])
def test_quantities_have_si_prefixes(value: float, text: str) -> None:
    assert quantity(value) == text


def test_score_of_a_searched_candidate_has_a_row_of_its_own() -> None:
    assert "candidate 7" in str(Summary("Net", 200, 50, 1, 1, score=0.8125, candidate=7))
    assert "0.8125" in str(Summary("Net", 200, 50, 1, 1, score=0.8125, candidate=7))
    assert "candidate" not in str(Summary("Net", 200, 50, 1, 1))
