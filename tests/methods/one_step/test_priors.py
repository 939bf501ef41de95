"""A guided search begins with candidates that meet the target and that something speaks for."""

from __future__ import annotations

import logging
from typing import Any

import pytest

import channelwise as cw
from channelwise.evaluate import Images, Repair
from channelwise.methods.one_step.priors import priors
from channelwise.methods.one_step.ranking import ranked
from channelwise.methods.one_step.space import candidate_space
from channelwise.methods.options import Target
from channelwise.methods.sensitivity import Sensitivity, kept_counts
from tests.methods.searched import INPUTS, LOADER, wide

GRAPH = cw.trace(wide(), INPUTS)


def found(loader: Any = None, sensitivity: Sensitivity | None = None, ranking: Any = "l1") -> list[dict[str, int]]:
    images = None if loader is None else Images(loader)
    chooser = ranked(GRAPH, ranking, Repair(images), refit=False)
    space = candidate_space(chooser, (), 1, Target(macs=0.5))
    return [dict(counts) for counts in priors(GRAPH, chooser, space, images, sensitivity)]


def test_all_meet_the_target_and_the_last_is_even() -> None:
    counts = found(LOADER)
    assert len(counts) == 3
    for one in counts:
        assert cw.trace(wide(), INPUTS).structure.full().keys() == one.keys()
        selection = GRAPH.select(sparsity={g.name: 1 - one[g.name] / g.size for g in GRAPH.groups})
        assert GRAPH.macs(selection) / GRAPH.macs() == pytest.approx(0.5, rel=0.01)
    shares = [counts[-1][group.name] / group.size for group in GRAPH.groups]
    assert max(shares) - min(shares) < 0.1


def test_without_images_there_is_no_fisher_information() -> None:
    assert found() == found(LOADER)[1:]


def test_group_that_an_analysis_calls_sensitive_keeps_more_than_it_does_evenly() -> None:
    analysis = Sensitivity(baseline=1.0)
    for name, counts in kept_counts(GRAPH.structure).items():
        loss = 1.0 if name == "body.6" else 0.1
        analysis.scores[name] = {kept: 1.0 - loss * sparsity for kept, sparsity in counts.items()}
    first, *_, even = found(sensitivity=analysis)
    assert first["body.6"] > 1.3 * even["body.6"]
    assert all(first[name] <= even[name] for name in first if name != "body.6")


def test_what_cannot_be_made_is_left_out_and_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert len(found(ranking=lambda group, tensors: [1.0])) == 1
    assert "without the candidate from the ranking" in caplog.text
