"""Selections hold the right number of the most important channels, and bad requests are named."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

from channelwise.cost import macs, params
from channelwise.errors import InvalidArgumentError, NothingToPruneError, UnreachableTargetError
from channelwise.select.channels import choose, dead_channels, select
from channelwise.selection import Selection
from channelwise.structure import Group, TensorInfo
from tests.handmade import chain, random_tensors, single, slots

NET = chain([16, 32, 24])
TENSORS = random_tensors(NET)


def by(values):
    return lambda group, tensors: values


def kill(structure, tensors, removed):
    """The tensors with the removed channels' slots at zero, as a sparse pruning leaves them."""
    tensors = {name: t.clone() for name, t in tensors.items()}
    for group in structure.groups:
        for entry in group.slots:
            index = torch.as_tensor(entry.index[removed.get(group.name, [])].ravel().copy())
            tensors[entry.tensor].index_fill_(entry.axis, index, 0)
    return tensors


# How many


@pytest.mark.parametrize(("name", "cost"), [("macs", macs), ("params", params)])
def test_a_budget_is_met_and_every_group_present(name, cost):
    selection = select(NET, TENSORS, **{name: 0.5})
    assert list(selection.kept) == [g.name for g in NET.groups]
    assert cost(NET, selection.counts()) / cost(NET, NET.full()) == pytest.approx(0.5, rel=0.01)


def test_one_sparsity_holds_for_all_groups():
    assert select(NET, TENSORS, sparsity=0.5).counts() == {"net.0.conv": 8, "net.1.conv": 16, "net.2.conv": 12}


def test_sparsities_by_group_leave_other_groups_full():
    assert select(NET, TENSORS, sparsity={"net.1.conv": 0.25}).counts() == NET.full() | {"net.1.conv": 24}


def test_sparsities_with_a_budget_are_scaled_to_it():
    counts = select(NET, TENSORS, macs=0.7, sparsity={"net.1.conv": 0.3, "net.2.conv": 0.3}).counts()
    assert counts["net.0.conv"] == 16
    assert macs(NET, counts) / macs(NET, NET.full()) == pytest.approx(0.7, rel=0.02)


def test_excluded_groups_stay_full_and_the_budget_is_met_by_the_others():
    counts = select(NET, TENSORS, macs=0.6, excludes=["net.1"]).counts()
    assert counts["net.1.conv"] == 32
    assert macs(NET, counts) / macs(NET, NET.full()) == pytest.approx(0.6, rel=0.02)


def test_excludes_may_be_modules_of_a_given_model():
    model = nn.Module()
    model.net = nn.ModuleList(nn.ModuleDict({"conv": nn.Conv2d(1, 1, 1)}) for _ in range(3))
    counts = select(NET, TENSORS, sparsity=0.5, excludes=model.net[0]["conv"], model=model).counts()
    assert counts["net.0.conv"] == 16


@pytest.mark.parametrize("target", [{"sparsity": 0.9}, {"macs": 0.615}])
def test_divisor_minimum_width_and_limits_hold_for_every_kind_of_target(target):
    counts = select(NET, TENSORS, channel_divisible=8, min_channels=16, limits={"net.1.conv": 0.3}, **target).counts()
    assert counts == {"net.0.conv": 16, "net.1.conv": 24, "net.2.conv": 16}


def test_no_group_is_ever_emptied():
    assert min(select(NET, TENSORS, sparsity=0.999).counts().values()) == 1


# Which


def test_the_channels_with_the_highest_scores_stay():
    selection = choose(chain([6]), {**random_tensors(chain([6]))}, {"net.0.conv": 3}, by([5, 1, 4, 2, 6, 3]))
    assert selection.kept["net.0.conv"].tolist() == [0, 2, 4]


def test_of_equal_scores_the_first_stay():
    selection = choose(chain([6]), random_tensors(chain([6])), {"net.0.conv": 3}, by([1, 2, 1, 1, 1, 1]))
    assert selection.kept["net.0.conv"].tolist() == [0, 1, 2]


def test_every_part_keeps_its_own_best():
    structure = chain([6], parts=2)
    selection = choose(structure, random_tensors(structure), {"net.0.conv": 4}, by([9, 8, 7, 1, 3, 2]))
    assert selection.kept["net.0.conv"].tolist() == [0, 1, 4, 5]


def test_parts_need_not_be_contiguous():
    structure = chain([6], parts=2)
    group = dataclasses.replace(structure.groups[0], parts=np.array([7, 3, 7, 3, 7, 3]))
    structure = dataclasses.replace(structure, groups=(group,))
    selection = choose(structure, random_tensors(structure), {"net.0.conv": 2}, by([1, 9, 3, 8, 2, 7]))
    assert selection.kept["net.0.conv"].tolist() == [1, 2]


def test_the_ranking_by_name_decides():
    tensors = dict(TENSORS)
    tensors["net.0.bn.weight"] = torch.arange(16.0)
    kept = select(NET, tensors, sparsity=0.5, ranking="bn_scale").kept["net.0.conv"]
    assert kept.tolist() == list(range(8, 16))


def test_groups_that_stay_full_are_not_ranked():
    def refuse(group, tensors):
        raise AssertionError(group.name)

    assert choose(NET, TENSORS, NET.full(), refuse).counts() == NET.full()


@pytest.mark.parametrize("count", [0, 7, -1])
def test_counts_out_of_range_are_refused(count):
    with pytest.raises(InvalidArgumentError, match=r"'net\.0.conv' of 6 channels cannot keep"):
        choose(chain([6]), random_tensors(chain([6])), {"net.0.conv": count})


def test_counts_that_parts_cannot_share_are_refused():
    structure = chain([6], parts=2)
    with pytest.raises(InvalidArgumentError, match="2 parts must keep equally many"):
        choose(structure, random_tensors(structure), {"net.0.conv": 3})


def test_counts_of_unknown_groups_are_refused():
    with pytest.raises(InvalidArgumentError, match=r"counts names 'net\.7.conv'"):
        choose(NET, TENSORS, {"net.7.conv": 3})


# Channels that an earlier pruning removed


def test_channels_at_zero_are_dead():
    tensors = kill(NET, TENSORS, {"net.1.conv": [3, 30]})
    dead = dead_channels(NET, tensors)
    assert {name: np.flatnonzero(mask).tolist() for name, mask in dead.items() if mask.any()} == {"net.1.conv": [3, 30]}


def test_a_channel_with_one_weight_left_is_alive():
    tensors = kill(NET, TENSORS, {"net.1.conv": [3, 30]})
    tensors["net.2.conv.weight"][5, 30, 1, 1] = 1e-30
    assert np.flatnonzero(dead_channels(NET, tensors)["net.1.conv"]).tolist() == [3]


def test_buffers_do_not_keep_a_channel_alive():
    tensors = kill(NET, TENSORS, {"net.1.conv": [3]})
    tensors["net.1.bn.running_mean"][3] = 1
    assert dead_channels(NET, tensors)["net.1.conv"][3]


def test_norm_scales_that_start_at_zero_are_not_dead():
    tensors = dict(TENSORS) | {"net.1.bn.weight": torch.zeros(32)}
    assert not dead_channels(NET, tensors)["net.1.conv"].any()


def test_a_group_that_is_zero_altogether_is_not_the_work_of_pruning():
    tensors = {name: torch.zeros_like(t) for name, t in TENSORS.items()}
    assert not any(mask.any() for mask in dead_channels(NET, tensors).values())


def test_dead_channels_of_blocked_tensors_are_found():
    info = TensorInfo("up.weight", (4, 3, 1), True, "up", blocks=2)
    group = Group("up", 6, (slots("up.weight", 1, range(6), "output"),), np.repeat([0, 1], 3))
    weight = torch.ones(4, 3, 1)
    weight[2:, 1] = 0
    assert np.flatnonzero(dead_channels(single(group, [info]), {"up.weight": weight})["up"]).tolist() == [4]


def test_what_was_removed_stays_removed_when_more_is_pruned():
    first = select(NET, TENSORS, macs=0.7)
    removed = {g.name: np.setdiff1d(np.arange(g.size), first.kept[g.name]) for g in NET.groups}
    second = select(NET, kill(NET, TENSORS, removed), macs=0.4, ranking="random")
    assert all(np.isin(second.kept[name], first.kept[name]).all() for name in first.kept)
    assert macs(NET, second.counts()) / macs(NET, NET.full()) == pytest.approx(0.4, rel=0.02)


def test_pruning_again_to_the_same_budget_changes_nothing():
    first = select(NET, TENSORS, macs=0.7)
    removed = {g.name: np.setdiff1d(np.arange(g.size), first.kept[g.name]) for g in NET.groups}
    assert select(NET, kill(NET, TENSORS, removed), macs=0.7) == first


# Bad requests


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        ({}, "Give a target"),
        ({"macs": 0.5, "params": 0.5}, "not macs and params together"),
        ({"macs": 0.5, "sparsity": 0.5}, "not macs and sparsity together"),
        ({"macs": 0}, r"macs must be a number in \(0, 1\]"),
        ({"macs": 1.1}, "not 1.1"),
        ({"macs": -0.5}, "macs must"),
        ({"macs": float("nan")}, "not nan"),
        ({"macs": True}, "not True"),
        ({"macs": "0.5"}, "not '0.5'"),
        ({"params": 2}, "params must"),
        ({"sparsity": 1.0}, r"sparsity must be a number in \[0, 1\)"),
        ({"sparsity": -0.1}, "sparsity must"),
        ({"sparsity": True}, "sparsity must"),
        ({"sparsity": [0.5]}, "sparsity must"),
        ({"sparsity": {"net.0.conv": 1}}, r"sparsity\['net.0.conv'\] must"),
        ({"sparsity": {"net.0.cnv": 0.5}}, "'net.0.cnv' matches no group.* net.0.conv"),
        ({"sparsity": 0.5, "ranking": "l3"}, "no ranking 'l3'"),
        ({"sparsity": 0.5, "excludes": "stem"}, "'stem' matches no"),
        ({"sparsity": 0.5, "channel_divisible": 0}, "channel_divisible"),
    ],
)
def test_bad_requests_are_refused_with_the_argument_named(request_, text):
    with pytest.raises(InvalidArgumentError, match=text):
        select(NET, TENSORS, **request_)


def test_numpy_numbers_are_numbers():
    assert select(NET, TENSORS, macs=np.float32(0.5)) == select(NET, TENSORS, macs=float(np.float32(0.5)))


def test_an_unreachable_budget_is_refused():
    with pytest.raises(UnreachableTargetError, match="keep"):
        select(NET, TENSORS, macs=0.001)


@pytest.mark.parametrize("target", [{"macs": 0.5}, {"sparsity": 0.5}])
def test_excluding_every_group_leaves_nothing_to_prune(target):
    with pytest.raises(NothingToPruneError, match="all are excluded"):
        select(NET, TENSORS, excludes="*", **target)


@pytest.mark.parametrize("target", [{"macs": 0.5}, {"params": 0.5}, {"sparsity": 0.5}])
def test_a_model_without_groups_has_nothing_to_prune(target):
    with pytest.raises(NothingToPruneError, match="has no channel group"):
        select(chain([]), random_tensors(chain([])), **target)


def test_tensors_of_another_model_are_refused_by_name():
    with pytest.raises(InvalidArgumentError, match=r"net\.0\.conv\.weight"):
        select(NET, {n: t for n, t in TENSORS.items() if n != "net.0.conv.weight"}, macs=0.5)
    with pytest.raises(InvalidArgumentError, match=r"'net\.0.bn\.weight' had shape"):
        select(NET, TENSORS | {"net.0.bn.weight": torch.ones(15)}, macs=0.5)


# The selection as a value


def test_a_selection_survives_json():
    selection = select(NET, TENSORS, macs=0.5)
    assert Selection.from_json(json.loads(json.dumps(selection.to_json())), NET) == selection


def test_selections_cannot_be_changed():
    selection = Selection.full(NET)
    with pytest.raises(ValueError, match="read-only"):
        selection.kept["net.0.conv"][0] = 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        selection.kept = {}


def test_the_arrays_given_stay_the_callers_own():
    indices = np.array([0, 2])
    selection = Selection({"a": indices})
    indices[0] = 1
    assert selection.kept["a"].tolist() == [0, 2]


def test_selections_compare_by_their_channels():
    assert Selection({"a": [0, 2]}) == Selection({"a": np.array([0, 2])})
    assert hash(Selection({"a": [0, 2]})) == hash(Selection({"a": [0, 2]}))
    assert Selection({"a": [0, 2]}) != Selection({"a": [0, 1]})


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (None, "the key 'kept'"),
        ({"keep": {}}, "the key 'kept'"),
        ({"kept": [1]}, "the key 'kept'"),
        ({"kept": {"a": 3}}, "'a' must be a list of integers"),
        ({"kept": {"a": [0.5]}}, "'a' must be a list of integers"),
        ({"kept": {"a": [True]}}, "'a' must be a list of integers"),
        ({"kept": {"a": []}}, "'a' must be a list of at least one"),
        ({"kept": {"a": [2, 1]}}, "'a' must ascend"),
        ({"kept": {"a": [1, 1]}}, "'a' must ascend"),
        ({"kept": {"a": [-1, 1]}}, "'a' must ascend"),
    ],
)
def test_damaged_json_is_refused_with_the_group_named(data, text):
    with pytest.raises(InvalidArgumentError, match=text):
        Selection.from_json(data)


@pytest.mark.parametrize(
    ("kept", "text"),
    [
        ({"net.0.conv": [0, 3]}, "nothing about the group 'net.1.conv'"),
        ({"net.0.conv": [6], "net.1.conv": [0, 3]}, "'net.0.conv' has channels 0 to 5; the selection keeps 6"),
        ({"net.0.conv": [0, 3], "net.1.conv": [0, 1]}, "parts of the group 'net.1.conv'"),
        ({"net.0.conv": [0, 3], "net.1.conv": [0, 3], "x": [0]}, "'x', which is no channel group"),
    ],
)
def test_a_selection_is_checked_against_the_structure(kept, text):
    with pytest.raises(InvalidArgumentError, match=text):
        Selection.from_json({"kept": kept}, chain([6, 6], parts=2))
