"""A global allocation gives up the least importance per cost, within what groups may keep."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import channelwise as cw
from channelwise.cost import cost_model, macs, params
from channelwise.errors import InvalidArgumentError, NothingToPruneError, UnreachableTargetError
from channelwise.select import allocation
from channelwise.select.allocation import global_counts
from channelwise.select.channels import choose, select
from channelwise.select.widths import allowed_widths
from tests.handmade import chain, random_tensors

NET = chain([16, 32, 24])
WIDE = chain([64, 128, 96])
TENSORS = random_tensors(NET)


def share(structure, counts, cost=macs):
    return cost(structure, counts) / cost(structure, structure.full())


def random_scores(structure, seed=0):
    random = np.random.default_rng(seed)
    return {g.name: random.gamma(0.7, size=g.size) for g in structure.groups}


@pytest.mark.parametrize(("name", "cost"), [("macs", macs), ("params", params)])
@pytest.mark.parametrize("target", [0.2, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("comparable", [True, False])
def test_the_budget_is_met(name, cost, target, comparable):
    counts = global_counts(NET, random_scores(NET), target, name, comparable=comparable)
    assert share(NET, counts, cost) == pytest.approx(target, rel=0.005)


@pytest.mark.parametrize("target", [0.2, 0.5])
def test_no_selection_of_the_same_cost_loses_noticeably_less_importance(target):
    """Compared with all selections there are. Prices that stay those of the full widths lose 0.3 % and more at 0.2."""
    structure = chain([30, 40, 35])
    names = [g.name for g in structure.groups]
    grid = np.stack(np.meshgrid(*[np.arange(1, g.size + 1) for g in structure.groups]), -1).reshape(-1, 3)
    costs = cost_model(structure).macs(grid)
    for seed in range(6):
        values = random_scores(structure, seed)
        counts = global_counts(structure, values, target, comparable=True)
        removed = [np.cumsum(np.r_[0, np.sort(values[name])]) for name in names]
        loss = sum(r[len(r) - 1 - grid[:, i]] for i, r in enumerate(removed))
        best = loss[costs <= macs(structure, counts)].min()
        mine = sum(r[len(r) - 1 - counts[name]] for r, name in zip(removed, names, strict=True))
        assert mine - best < 0.002 * sum(r[-1] for r in removed)


def test_a_cheap_channel_outlives_expensive_ones_of_equal_importance():
    counts = global_counts(WIDE, {g.name: np.ones(g.size) for g in WIDE.groups}, 0.7, comparable=True)
    full = WIDE.full()
    price = {name: macs(WIDE, full) - macs(WIDE, full | {name: n - 1}) for name, n in full.items()}
    cheapest, dearest = min(price, key=price.__getitem__), max(price, key=price.__getitem__)
    assert counts[cheapest] == full[cheapest]
    assert counts[dearest] < full[dearest]


def test_scores_of_one_scale_decide_between_groups():
    values = {g.name: np.ones(g.size) for g in WIDE.groups}
    values["net.1.conv"] = values["net.1.conv"] * 100
    counts = global_counts(WIDE, values, 0.6, comparable=True)
    assert counts["net.1.conv"] == 128
    assert counts["net.0.conv"] + counts["net.2.conv"] < 120


def test_scores_without_a_common_scale_are_measured_within_their_group():
    values = random_scores(NET)
    scaled = {name: v * factor for (name, v), factor in zip(values.items(), (1e-6, 1, 1e9), strict=True)}
    assert global_counts(NET, scaled, 0.5) == global_counts(NET, values, 0.5)


def test_a_group_that_a_few_channels_carry_is_pruned_more():
    values = {g.name: np.ones(g.size) for g in WIDE.groups}
    even = global_counts(WIDE, values, 0.6)
    values["net.2.conv"] = np.r_[np.ones(16), np.full(80, 0.01)]
    assert global_counts(WIDE, values, 0.6)["net.2.conv"] < even["net.2.conv"] - 10


@pytest.mark.parametrize("comparable", [True, False])
def test_a_group_read_by_more_layers_counts_for_each(comparable):
    """Shared out without a common scale, every reader is one share; with one, scores are what they are."""

    class Net(nn.Module):
        def __init__(self, readers):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 64, 3), nn.Conv2d(3, 64, 3), nn.Conv2d(64, 4, 1)
            self.readers = nn.ModuleList(nn.Conv2d(64, 4, 1) for _ in range(readers))

        def forward(self, x):
            a = self.a(x)
            return self.c(self.b(x)), [reader(a) for reader in self.readers]

    kept = []
    for readers in (1, 4):
        structure = cw.trace(Net(readers), torch.zeros(1, 3, 8, 8)).structure
        values = {g.name: np.arange(1.0, g.size + 1) for g in structure.groups}
        counts = global_counts(structure, values, 0.6, comparable=comparable)
        kept.append(counts["a"] - counts["b"])
    assert (kept[1] > kept[0]) is not comparable


@pytest.mark.parametrize("values", [np.zeros(16), np.arange(16.0) - 8], ids=["zero", "negative"])
@pytest.mark.parametrize("comparable", [True, False])
def test_scores_of_any_sign_are_taken(values, comparable):
    scores = random_scores(NET) | {"net.0.conv": values}
    counts = global_counts(NET, scores, 0.5, comparable=comparable)
    assert share(NET, counts) == pytest.approx(0.5, rel=0.005)


def test_without_a_common_scale_negative_scores_count_from_the_least():
    values = np.arange(64.0)
    even = {g.name: np.ones(g.size) for g in WIDE.groups}
    expected = global_counts(WIDE, even | {"net.0.conv": values}, 0.5)
    assert global_counts(WIDE, even | {"net.0.conv": values - 63}, 0.5) == expected


def test_channels_removed_before_are_worth_nothing():
    structure = chain([64, 64])
    dead = {g.name: np.zeros(g.size, bool) for g in structure.groups}
    dead["net.0.conv"][:32] = True
    values = {g.name: np.ones(g.size) for g in structure.groups}
    values["net.0.conv"] = np.r_[np.full(32, 1000.0), np.full(32, 0.1)]
    widths = allowed_widths(structure, dead=dead)
    assert global_counts(structure, values, 0.4, "macs", widths, True)["net.0.conv"] > 28
    assert global_counts(structure, values, 0.4, "macs", widths, True, dead=dead)["net.0.conv"] < 28


def test_groups_that_cost_nothing_stay_as_they_are():
    class Auxiliary(nn.Module):
        """The auxiliary head runs in training only, where MACs are not counted."""

        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Conv2d(3, 32, 3), nn.Linear(32, 5)
            self.aux = nn.Sequential(nn.Linear(32, 8), nn.Linear(8, 5))

        def forward(self, x):
            x = self.body(x).mean((2, 3))
            return (self.head(x), self.aux(x)) if self.training else self.head(x)

    structure = cw.trace(Auxiliary(), torch.zeros(1, 3, 8, 8)).structure
    values = {g.name: np.zeros(g.size) if g.name == "aux.0" else np.ones(g.size) for g in structure.groups}
    counts = global_counts(structure, values, 0.5, comparable=True)
    assert counts["aux.0"] == 8
    assert counts["body"] == 16


def test_widths_are_honoured():
    structure = chain([16, 32, 24], parts=2)
    widths = allowed_widths(
        structure, channel_divisible=4, min_channels=8, full=["net.2.conv"], limits={"net.1.conv": 0.25}
    )
    counts = global_counts(structure, random_scores(structure), 0.6, widths=widths)
    assert counts["net.2.conv"] == 24
    assert counts["net.1.conv"] >= 24
    assert counts["net.0.conv"] >= 8
    assert all(n % 4 == 0 for n in counts.values())


def test_parts_give_up_one_channel_each():
    """What a step loses is what the worst channel of every part is worth, not the worst channels of all."""
    structure = chain([64, 64], parts=2)
    values = {"net.0.conv": np.r_[np.full(32, 1e-9), np.full(32, 10.0)], "net.1.conv": np.full(64, 1.0)}
    counts = global_counts(structure, values, 0.6, comparable=True)
    assert counts["net.0.conv"] > counts["net.1.conv"]


def test_scores_are_needed_only_where_there_is_a_choice():
    values = random_scores(NET)
    del values["net.1.conv"]
    assert global_counts(NET, values, 0.7, widths=allowed_widths(NET, full=["net.1.conv"]))["net.1.conv"] == 32
    with pytest.raises(InvalidArgumentError, match=r"'net\.1\.conv'"):
        global_counts(NET, values, 0.7)


@pytest.mark.parametrize("values", [np.ones(15), np.full(16, np.nan), np.full(16, np.inf)])
def test_unusable_scores_are_refused_with_the_group(values):
    with pytest.raises(InvalidArgumentError, match=r"'net\.0\.conv' needs 16 finite scores"):
        global_counts(NET, random_scores(NET) | {"net.0.conv": values}, 0.5)


def test_an_unreachable_target_is_refused_with_the_range():
    with pytest.raises(UnreachableTargetError, match=r"keep 0\.\d+ to 1\.0000"):
        global_counts(NET, random_scores(NET), 0.0001)
    with pytest.raises(NothingToPruneError):
        global_counts(NET, {}, 0.5, widths=allowed_widths(NET, full=list(NET.full())))


def test_a_wide_network_takes_hundreds_of_evaluations(monkeypatch):
    """Not one for each of its 34,000 channels."""
    structure = chain([64, 256] * 10 + [512, 2048] * 8 + [1024] * 10)
    evaluate, evaluations = cost_model(structure).cost("macs"), []

    def counting(counts):
        evaluations.append(np.ndim(counts))
        return evaluate(counts)

    monkeypatch.setattr(allocation, "cost_model", lambda structure: SimpleNamespace(cost=lambda cost: counting))
    counts = global_counts(structure, random_scores(structure), 0.5)
    assert 100 < len(evaluations) < 1000
    assert share(structure, counts) == pytest.approx(0.5, rel=0.005)


# In select


def test_select_shares_out_its_budget_globally_when_asked():
    tensors = random_tensors(WIDE)
    selection = select(WIDE, tensors, macs=0.5, ranking="l2", allocation="global")
    values = {g.name: cw.ranking.scores("l2", g, tensors) for g in WIDE.groups}
    counts = global_counts(WIDE, values, 0.5)
    assert selection == choose(WIDE, tensors, counts, "l2")
    assert counts != select(WIDE, tensors, macs=0.5, ranking="l2").counts()


def test_select_takes_scores_for_what_the_criterion_says_they_are():
    def mine(group, tensors):
        return np.arange(1.0, group.size + 1) * (100 if group.name == "net.1.conv" else 1)

    alone = select(NET, TENSORS, macs=0.6, ranking=mine, allocation="global").counts()
    mine.comparable = True
    together = select(NET, TENSORS, macs=0.6, ranking=mine, allocation="global").counts()
    assert together["net.1.conv"] > alone["net.1.conv"]


def test_excludes_hold_in_a_global_selection():
    graph = cw.trace(
        nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 4, 3)), torch.zeros(1, 3, 9, 9)
    )
    counts = graph.select(macs=0.6, ranking="consumer_l2", allocation="global", excludes=["1"]).counts()
    assert counts["1"] == 16
    assert counts["0"] < 16


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"macs": 0.5, "allocation": "greedy"}, "'uniform' or 'global', not 'greedy'"),
        ({"sparsity": 0.5, "allocation": "global"}, "give macs= or params="),
        ({"macs": 0.5, "sparsity": {"net.0.conv": 0.5}, "allocation": "global"}, "not both"),
    ],
)
def test_contradictory_requests_are_refused(arguments, text):
    with pytest.raises(InvalidArgumentError, match=text):
        select(NET, TENSORS, **arguments)
