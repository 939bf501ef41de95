"""What is asked of a method is checked when it is said, and the runners' keywords mean the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import channelwise as cw
from channelwise.errors import InvalidArgumentError, UnreachableTargetError
from tests.methods.searched import INPUTS as WIDE_INPUTS
from tests.methods.searched import LOADER, Logged, nearness, wide
from tests.methods.small import INPUTS, Counted, closeness, evaluations, net

GRAPH = cw.trace(net(), INPUTS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cw.Target(), r"Give a target: Target\(macs=0\.5\)"),
        (lambda: cw.Target(macs=1.5), r"macs must be a number in \(0, 1\].*not 1\.5"),
        (lambda: cw.Target(macs="half"), r"macs must be a number in .*not 'half'"),
        (lambda: cw.Target(params=0), r"params must be a number in .*not 0\.$"),
        (lambda: cw.Channels(ranking="l3"), r"There is no ranking 'l3'"),
        (lambda: cw.Channels(channel_divisible=0), r"channel_divisible must be an integer of at least 1"),
        (lambda: cw.SearchOptions(candidates=0), r"candidates must be an integer of at least 1"),
        (lambda: cw.Evaluation(0.7), r"eval_fn must be a function"),
        (lambda: cw.Evaluation(closeness, INPUTS), r"args must be a tuple"),
        (lambda: cw.Images(INPUTS), r"loader is a tensor"),
        (lambda: cw.Repair(INPUTS), r"loader is a tensor"),
        (lambda: cw.Repair(calibration_fn=3), r"calibration_fn must be a function"),
        (lambda: cw.Repair(compensate=True), r"compensate=True needs calibration images"),
        (
            lambda: cw.Iterative(net()),
            r"graph must be of the class ChannelGraph, such as channelwise\.trace\(model, inputs\), not",
        ),
        (lambda: cw.OneStep(net()), r"graph must be of the class ChannelGraph"),
        (
            lambda: cw.OneStep(GRAPH, LOADER),
            r"repair must be of the class Repair, such as Repair\(images\), not a list",
        ),
        (lambda: cw.OneStep(GRAPH, channels="l1"), r"channels must be of the class Channels"),
        (lambda: cw.OneStep(GRAPH).search(0.5, cw.Evaluation(closeness)), r"target must be of the class Target"),
        (lambda: cw.OneStep(GRAPH).search(cw.Target(0.5), closeness), r"evaluation must be of the class Evaluation"),
        (lambda: cw.OneStep(GRAPH).results(0.5), r"target must be of the class Target"),
        (lambda: cw.Iterative(GRAPH).ana(closeness), r"evaluation must be of the class Evaluation"),
        (lambda: cw.Iterative(GRAPH).prune(0.5), r"target must be of the class Target"),
        (lambda: cw.OneStep(cw.trace(net(), INPUTS), folder=3), r"folder=3: must be a path"),
    ],
)
def test_wrong_argument_is_told_at_once(make: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        make()


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ({}, r"exactly one of target, threshold and spec_path; found none"),
        ({"target": cw.Target(macs=0.5), "threshold": 0.1}, r"found target and threshold"),
        ({"threshold": 0}, r"threshold=0: must be larger than 0"),
        ({"target": cw.Target(macs=0.5, params=0.5)}, r"one target, macs or params, not macs=0\.5 and params=0\.5"),
    ],
)
def test_iterative_pruning_takes_one_target(targets: Any, message: str, tmp_path: Path) -> None:
    method = cw.Iterative(cw.trace(net(), INPUTS), folder=tmp_path, quiet=True)
    method.ana(cw.Evaluation(closeness))
    with pytest.raises(InvalidArgumentError, match=message):
        method.prune(**targets)


def test_analysis_of_the_runner_serves_the_method_and_both_prune_alike(tmp_path: Path) -> None:
    counted = Counted(tmp_path / "calls")
    runner = cw.IterativePruningRunner(net(), INPUTS, folder=tmp_path, quiet=True)
    runner.ana(counted, excludes=["second"])
    method = cw.Iterative(cw.trace(net(), INPUTS), cw.Channels(excludes=["second"]), folder=tmp_path, quiet=True)
    method.ana(cw.Evaluation(counted))
    assert counted.calls() == evaluations() - 9
    spec = tmp_path / "Net_ratio_0.2.spec"
    runner.prune(removal_ratio=0.2)
    first = spec.read_text()
    spec.unlink()
    method.prune(cw.Target(macs=0.8))
    assert spec.read_text() == first


def test_parameters_can_be_the_target_of_iterative_pruning(tmp_path: Path) -> None:
    graph = cw.trace(wide(), WIDE_INPUTS)
    method = cw.Iterative(graph, folder=tmp_path, quiet=True)
    method.ana(cw.Evaluation(nearness))
    slim = method.prune(cw.Target(params=0.6), mode="slim")
    assert sum(p.numel() for p in slim.parameters()) / graph.params() == pytest.approx(0.6, rel=0.01)


def test_unreachable_target_is_called_as_the_user_did(tmp_path: Path) -> None:
    graph = cw.trace(wide(), WIDE_INPUTS)
    with pytest.raises(UnreachableTargetError, match=r"^macs=0\.001 cannot be reached"):
        cw.OneStep(graph, folder=tmp_path).search(cw.Target(macs=0.001), cw.Evaluation(nearness))
    iterative = cw.Iterative(graph, folder=tmp_path, quiet=True)
    iterative.ana(cw.Evaluation(nearness))
    with pytest.raises(UnreachableTargetError, match=r"^macs=0\.001 cannot be reached.*between 0\.000 and 0\.9"):
        iterative.prune(cw.Target(macs=0.001))


def test_search_of_the_runner_is_gone_on_with_by_the_method(tmp_path: Path) -> None:
    logged = Logged(tmp_path / "calls")
    runner = cw.OneStepPruningRunner(wide(), WIDE_INPUTS, folder=tmp_path, quiet=True)
    runner.search(
        eval_fn=logged, num_subnet=2, removal_ratio=0.4, params_ratio=0.45, loader=LOADER, batches=2, ranking="l1",
        excludes=["body.0"], channel_divisible=1, direction="minimize", compensate=False,
    )  # fmt: skip
    method = cw.OneStep(
        cw.trace(wide(), WIDE_INPUTS), cw.Repair(cw.Images(LOADER, 2), compensate=False),
        cw.Channels(excludes=["body.0"], channel_divisible=1, ranking="l1"), folder=tmp_path, quiet=True,
    )  # fmt: skip
    options = cw.SearchOptions(candidates=3, direction="minimize")
    results = method.search(cw.Target(macs=0.6, params=0.55), cw.Evaluation(logged), options=options)
    assert len(results.complete) == len(logged.calls()) == 3
