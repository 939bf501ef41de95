"""Candidates meet the targets, stay near the wish, and cover small spaces exactly."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from scipy.stats import spearmanr

from channelwise.cost import cost_model
from channelwise.errors import InvalidArgumentError, NothingToPruneError, UnreachableTargetError
from channelwise.search import TargetSpace
from channelwise.select.widths import allowed_widths
from tests.handmade import chain
from tests.search.searches import WIDTHS, pyramid, space

WIDE = (64, 128, 96, 256, 200, 64, 48, 512)


def far(of: TargetSpace, counts: np.ndarray) -> float:
    return max(abs(share / of.targets[name] - 1) for name, share in of.shares(counts).items())


def allowed(of: TargetSpace, counts: np.ndarray) -> bool:
    return bool((of.widths.nearest(counts) == counts).all())


@pytest.mark.parametrize("target", [{"macs": 0.5}, {"macs": 0.15}, {"macs": 0.93}, {"params": 0.4}])
@pytest.mark.parametrize("divisor", [1, 2, 8])
def test_every_vector_becomes_counts_that_meet_the_target(target: dict[str, float], divisor: int) -> None:
    of = space(WIDE, target, channel_divisible=divisor)
    rng = np.random.default_rng(0)
    for vector in [np.zeros(of.dims), np.ones(of.dims), *rng.random((60, of.dims)), *rng.random((30, of.dims)) ** 8]:
        counts = of.project(vector)
        assert allowed(of, counts)
        assert far(of, counts) <= 0.005


@pytest.mark.parametrize("divisor", [1, 4])
def test_two_targets_are_met_at_once(divisor: int) -> None:
    of = pyramid(WIDE, {"macs": 0.5, "params": 0.42}, channel_divisible=divisor)
    for vector in np.random.default_rng(0).random((60, of.dims)):
        counts = of.project(vector)
        assert allowed(of, counts)
        assert far(of, counts) <= 0.005


def test_shares_are_those_of_the_cost_model() -> None:
    of = pyramid(WIDE, {"macs": 0.5, "params": 0.45})
    counts = of.project(np.full(of.dims, 0.5))
    model = cost_model(of.structure)
    assert of.shares(counts) == pytest.approx(
        {"macs": model.macs(counts) / model.macs(model.full), "params": model.params(counts) / model.params(model.full)}
    )


def test_counts_that_meet_the_target_are_their_own_projection() -> None:
    for targets in ({"macs": 0.5}, {"macs": 0.5, "params": 0.45}):
        of = pyramid(WIDE, targets)
        for vector in np.random.default_rng(1).random((30, of.dims)):
            counts = of.project(vector)
            assert (of.project(of.encode(counts)) == counts).all()


def test_projection_keeps_the_order_of_the_wished_shares() -> None:
    of = space(WIDE)
    for vector in np.random.default_rng(2).random((30, of.dims)):
        assert spearmanr(vector, of.encode(of.project(vector))).statistic > 0.9


def test_groups_without_a_choice_are_no_dimension_and_keep_their_width() -> None:
    structure = chain(WIDE)
    excluded = {structure.groups[1].name, structure.groups[5].name}
    of = TargetSpace(structure, allowed_widths(structure, full=excluded), {"macs": 0.6})
    assert of.dims == len(WIDE) - 2
    assert not excluded & set(of.free)
    for vector in np.random.default_rng(0).random((10, of.dims)):
        counts = of.named(of.project(vector))
        assert all(counts[name] == structure.group(name).size for name in excluded)


def test_parts_keep_equally_many() -> None:
    of = space(WIDE, parts=4)
    for vector in np.random.default_rng(0).random((10, of.dims)):
        assert (of.project(vector) % 4 == 0).all()


@pytest.mark.parametrize("targets", [{"macs": 0.5}, {"macs": 0.5, "params": 0.5}])
def test_small_spaces_list_exactly_what_meets_the_targets(targets: dict[str, float]) -> None:
    of = pyramid((12, 8, 10), targets)
    listed = of.listed()
    assert listed is not None
    every = [np.array(c) for c in itertools.product(range(1, 13), range(1, 9), range(1, 11))]
    nearest = min(far(of, c) for c in every)
    wanted = {tuple(c.tolist()) for c in every if far(of, c) <= max(0.005, nearest * (1 + 1e-9))}
    assert {tuple(c.tolist()) for c in listed} == wanted
    for vector in np.random.default_rng(0).random((30, of.dims)):
        assert tuple(of.project(vector).tolist()) in wanted


def test_a_coarse_divisor_gets_as_near_as_it_allows() -> None:
    of = space((16, 16, 16, 16, 16), {"macs": 0.57}, channel_divisible=8)
    best = min(far(of, np.array(c)) for c in itertools.product((8, 16), repeat=5))
    assert best > 0.005
    for vector in np.random.default_rng(0).random((10, of.dims)):
        assert far(of, of.project(vector)) == pytest.approx(best)


def test_a_further_cost_can_be_a_target() -> None:
    structure = chain(WIDE)
    of = TargetSpace(
        structure, allowed_widths(structure), {"ms": 0.5}, costs={"ms": lambda c: 3.0 + (c**2).sum(axis=1)}
    )
    counts = of.project(np.full(of.dims, 0.3))
    assert (3 + (counts**2).sum()) / (3 + (np.array(WIDE) ** 2).sum()) == pytest.approx(0.5, rel=0.005)


def test_candidates_are_accepted_as_vectors_counts_and_names() -> None:
    of = space()
    counts = of.project(np.full(of.dims, 0.7))
    assert (of.candidate(of.encode(counts)) == counts).all()
    assert (of.candidate(counts) == counts).all()
    assert (of.candidate(of.named(counts)) == counts).all()
    assert far(of, of.candidate(of.structure.full())) <= 0.005


def test_candidates_of_another_shape_are_refused() -> None:
    of = space()
    for wrong in (np.zeros(3), np.zeros(2, int), "half"):
        with pytest.raises(InvalidArgumentError, match=f"{of.dims} numbers"):
            of.candidate(wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match=r"'net\.9\.conv'"):
        of.candidate({"net.9.conv": 4})


def test_unreachable_targets_tell_the_range() -> None:
    with pytest.raises(
        UnreachableTargetError, match=r"macs=0\.01 cannot be reached: candidates keep 0\.\d+ to 1\.0000"
    ):
        space(limits=0.5, targets={"macs": 0.01})


def test_targets_that_exclude_each_other_tell_the_range_of_the_second() -> None:
    with pytest.raises(UnreachableTargetError, match="cannot be met together") as caught:
        pyramid(WIDE, {"macs": 0.9, "params": 0.2})
    kept = re.search(r"keep about (0\.\d+) to (0\.\d+) of the parameters", str(caught.value))
    assert kept is not None
    low, high = map(float, kept.groups())
    assert low > 0.2
    for share in (low + 0.01, high - 0.01):
        of = pyramid(WIDE, {"macs": 0.9, "params": share})
        assert far(of, of.project(np.full(of.dims, 0.5))) <= 0.005


def test_nothing_left_to_choose_is_an_error_unless_nothing_is_asked() -> None:
    structure = chain(WIDTHS)
    widths = allowed_widths(structure, full=set(structure.full()))
    with pytest.raises(NothingToPruneError, match="excluded"):
        TargetSpace(structure, widths, {"macs": 0.5})
    only = TargetSpace(structure, widths, {"macs": 1.0})
    assert only.dims == 0
    assert only.named(only.project(np.empty(0))) == structure.full()


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ({}, "one or two targets"),
        ({"macs": 0.5, "params": 0.5, "ms": 0.5}, "one or two targets"),
        ({"joules": 0.5}, "no cost 'joules'"),
        ({"macs": 0.0}, r"macs must be a number in \(0, 1\]"),
        ({"macs": 50}, r"macs must be a number in \(0, 1\]"),
    ],
)
def test_wrong_targets_are_named(targets: dict[str, float], words: str) -> None:
    structure = chain(WIDTHS)
    with pytest.raises(InvalidArgumentError, match=words):
        TargetSpace(structure, allowed_widths(structure), targets)
