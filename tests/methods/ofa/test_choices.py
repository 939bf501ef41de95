"""Which widths there are, what a setting is, what is refused."""

from __future__ import annotations

import json
import random
from types import FunctionType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import channelwise as cw
from channelwise.errors import InvalidArgumentError, NothingToPruneError
from channelwise.methods.ofa import OFAPruner
from channelwise.methods.ofa.elastic import check_ratios, width_choice
from channelwise.structure import Group
from tests.methods.ofa.supernets import INPUTS, Small, outputs, small, supernet


def candidates(size: int, ratios: list[float], divisor: int, parts: np.ndarray | None = None) -> list[int]:
    return list(width_choice(Group("g", size, (), parts), ratios, divisor).candidates)


@pytest.mark.parametrize(
    ("size", "ratios", "divisor", "expected"),
    [
        (64, [0.5, 0.75, 1], 8, [32, 48, 64]),
        (24, [0.5, 0.75, 1], 8, [16, 24]),  # 12 and 18 are nearest to 16
        (20, [0.5, 1], 8, [8, 20]),  # the full width need not be a multiple
        (6, [0.5, 1], 8, [4, 6]),  # the divisor halved until half of 6 reaches it
        (3, [0.1, 1], 8, [1, 3]),
        (1, [0.5, 1], 8, [1]),
        (64, [1], 8, [64]),
        (64, [0.99, 1], 8, [64]),
        (100, [0.01, 1], 1, [1, 100]),
    ],
)
def test_widths_are_ratios_rounded_to_the_divisor(
    size: int, ratios: list[float], divisor: int, expected: list[int]
) -> None:
    assert candidates(size, ratios, divisor) == expected


def test_parts_keep_equally_many_channels() -> None:
    parts = np.repeat(np.arange(3), 8)
    assert candidates(24, [0.25, 0.6, 1], 1, parts) == [6, 15, 24]
    assert all(n % 3 == 0 for n in candidates(24, [0.1, 0.3, 0.7, 1], 8, parts))


def test_ratios_are_sorted_and_doubles_dropped() -> None:
    assert check_ratios((1, 0.5, 0.75, 0.5, 1.0)) == (0.5, 0.75, 1.0)
    pruner, _ = supernet(expand_ratio=[1, 0.25, 0.5, 0.25])
    assert pruner.search_space.choices[pruner.search_space.position["expand.0"]].candidates == (8, 16, 32)


@pytest.mark.parametrize("ratios", [[0, 1], [-0.5, 1], [1.5, 1], [float("nan"), 1], ["0.5", 1], [True, 0.5], [None, 1]])
def test_ratios_are_shares(ratios: list[Any]) -> None:
    with pytest.raises(InvalidArgumentError, match="expand_ratio"):
        supernet(expand_ratio=ratios)


@pytest.mark.parametrize("ratios", [[], (), 0.5, "0.5", None, {0.5, 1}])
def test_ratios_are_a_list(ratios: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="expand_ratio must be a list"):
        supernet(expand_ratio=ratios)


def test_ratios_without_the_original_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"lacks 1"):
        supernet(expand_ratio=[0.5, 0.75])


@pytest.mark.parametrize("divisor", [0, -8, 2.5, "8", None, True])
def test_a_divisor_that_is_no_count_is_refused(divisor: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="channel_divisible"):
        supernet(channel_divisible=divisor)


def test_a_divisor_larger_than_every_layer_adapts() -> None:
    pruner, model = supernet(channel_divisible=1024)
    assert len(pruner.search_space.free) >= 3
    pruner.sample_subnet(model, "min")
    assert pruner.search_space.macs(pruner.search_space.minimum) < pruner.search_space.macs(pruner.search_space.maximum)


def test_the_misspelt_keyword_works() -> None:
    right, wrong = supernet(channel_divisible=1)[0], supernet(channel_divisble=1)[0]
    assert right.search_space.digest() == wrong.search_space.digest() != supernet()[0].search_space.digest()


def test_only_ratio_one_leaves_nothing_to_choose() -> None:
    with pytest.raises(NothingToPruneError, match=r"width can change"):
        supernet(expand_ratio=[1], elastic_kernel=False)


class TestExcludes:
    def fixed(self, excludes: Any, **options: Any) -> set[str]:
        model = small()
        found = excludes(model) if isinstance(excludes, FunctionType) else excludes
        pruner, _ = supernet(model, excludes=found, elastic_kernel=False, **options)
        return {m for c in pruner.search_space.choices if len(c.candidates) == 1 for m in c.modules}

    @pytest.mark.parametrize(
        "excludes", ["first.0", ["first.0"], "first*", lambda m: m.first, lambda m: [m.first[0]], ["first"]]
    )
    def test_a_layer(self, excludes: Any) -> None:
        assert self.fixed(excludes, auto_add_excludes=False) == {"first.0"}

    def test_a_type(self) -> None:
        with pytest.raises(NothingToPruneError, match="excluded"):
            self.fixed(nn.Conv2d)

    def test_an_excluded_layer_keeps_its_width_in_every_subnet(self) -> None:
        pruner, model = supernet(excludes=["expand.0"])
        _, setting = pruner.sample_subnet(model, "min")
        static = pruner.get_static_subnet(model, setting)[0]
        assert static.expand[0].out_channels == 32
        assert static.first[0].out_channels < 24
        # The kernel of a layer that keeps its width stays as well.
        assert static.depthwise[0].kernel_size == (5, 5)

    @pytest.mark.parametrize("excludes", ["nowhere", "layer9.*", nn.Conv3d, nn.ReLU6()])
    def test_what_matches_nothing_is_an_error(self, excludes: Any) -> None:
        with pytest.raises(InvalidArgumentError, match=r"exclude"):
            self.fixed(excludes)

    def test_first_and_last_convolution_by_default(self) -> None:
        assert self.fixed(None) >= {"stem.0", "project"}
        assert not self.fixed(None, auto_add_excludes=False)

    def test_outputs_keep_their_width_anyway(self) -> None:
        pruner, model = supernet(auto_add_excludes=False)
        pruner.sample_subnet(model, "min")
        assert outputs(model).shape == (4, 5)


class TestSettings:
    def test_a_setting_is_plain_json(self) -> None:
        pruner, model = supernet()
        for mode in ("max", "min", "random"):
            _, setting = pruner.sample_subnet(model, mode)  # type: ignore[arg-type]
            again = json.loads(json.dumps(setting))
            assert again == setting
            pruner.set_subnet(model, again)
            assert {"modules", "candidate_out_channel_list", "active_out_channel"} <= set(setting[0])
            assert "active_kernel_size" in setting[-1]

    def test_a_setting_of_another_network_is_refused(self) -> None:
        pruner, model = supernet()
        other, net = supernet(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 3)))
        _, setting = other.sample_subnet(net, "min")
        with pytest.raises(InvalidArgumentError, match="another network"):
            pruner.set_subnet(model, setting)
        _, own = pruner.sample_subnet(model, "min")
        with pytest.raises(InvalidArgumentError, match="another network"):
            pruner.get_static_subnet(model, list(reversed(own)))

    @pytest.mark.parametrize("width", [0, -4, 5, 1000, "8", 8.0, None, True])
    def test_an_impossible_width_is_refused(self, width: Any) -> None:
        pruner, model = supernet()
        before = outputs(model)
        _, setting = pruner.sample_subnet(model, "max")
        entry = next(e for e in setting if e.get("group") == "first.0")
        entry["active_out_channel"] = width
        with pytest.raises(InvalidArgumentError, match=r"first\.0"):
            pruner.set_subnet(model, setting)
        assert torch.equal(outputs(model), before)

    def test_an_impossible_kernel_is_refused(self) -> None:
        pruner, model = supernet()
        _, setting = pruner.sample_subnet(model, "max")
        setting[-1]["active_kernel_size"] = 4
        with pytest.raises(InvalidArgumentError, match=r"active_kernel_size=4"):
            pruner.set_subnet(model, setting)

    @pytest.mark.parametrize("setting", [None, "max", 3, [], [{}], [None] * 5, {"first": 3}])
    def test_what_is_no_setting_is_refused(self, setting: Any) -> None:
        pruner, model = supernet()
        with pytest.raises(InvalidArgumentError, match="setting"):
            pruner.set_subnet(model, setting)


class TestCosts:
    def test_values_in_a_batch_cost_what_each_costs(self) -> None:
        space = supernet()[0].search_space
        values = np.stack([space.random(random.Random(i)) for i in range(6)])
        np.testing.assert_allclose(space.macs(values), [space.macs(v) for v in values])
        np.testing.assert_allclose(space.params(values), [space.params(v) for v in values])

    def test_the_full_space_costs_what_the_original_does(self) -> None:
        model = small()
        space = supernet(model)[0].search_space
        assert space.macs(space.maximum) == cw.trace(model, INPUTS).macs()
        assert space.params(space.maximum) == sum(p.numel() for p in model.parameters())

    def test_the_table_shows_choices_and_the_reachable_range(self) -> None:
        space = supernet()[0].search_space
        text = str(space)
        assert "first.0" in text
        assert "first convolution" in text
        assert "MACs" in text

    def test_nearest_is_a_candidate_and_the_larger_of_two(self) -> None:
        space = supernet()[0].search_space
        wanted = np.full(len(space.choices), 12.0)
        values = space.nearest(wanted)
        assert space.contains(values)
        assert values[space.position["expand.0"]] == 16  # of 8, 16, 32


class TestSubsets:
    def test_candidates_are_left_out_and_come_back(self) -> None:
        pruner, model = supernet()
        full = pruner.search_space.choices[pruner.search_space.position["first.0"]].candidates
        pruner.reset_search_space({"first.0": [full[0]]})
        for seed in range(5):
            _, setting = pruner.sample_subnet(model, seed=seed)
            assert next(e for e in setting if e.get("group") == "first.0")["active_out_channel"] == full[0]
        pruner.reset_search_space({})
        assert pruner.search_space.choices[pruner.search_space.position["first.0"]].candidates == full

    def test_a_setting_with_shorter_lists(self) -> None:
        pruner, model = supernet()
        _, setting = pruner.sample_subnet(model, "max")
        for entry in setting:
            if "active_out_channel" in entry:
                entry["candidate_out_channel_list"] = entry["candidate_out_channel_list"][-2:]
        space = pruner.reset_search_space(setting)
        assert all(len(c.candidates) <= 2 for c in space.choices if c.kind == "width")
        assert space.macs(space.minimum) > supernet()[0].search_space.macs(supernet()[0].search_space.minimum)

    @pytest.mark.parametrize(
        "candidates",
        [
            {"first.0": [7]},
            {"first.0": []},
            {"nowhere": [8]},
            {"first.0": [24, 32]},
            {"first.0": 8},
            {"first.0": ["8"]},
            {"first.0": [[8]]},
            "first.0",
            3,
            None,
            [{"group": "first.0"}],
        ],
    )
    def test_what_is_no_part_of_it_is_refused(self, candidates: Any) -> None:
        pruner, _ = supernet()
        before = pruner.search_space.digest()
        with pytest.raises(InvalidArgumentError):
            pruner.reset_search_space(candidates)
        assert pruner.search_space.digest() == before

    def test_before_there_is_a_supernet(self) -> None:
        with pytest.raises(InvalidArgumentError, match="ofa_model"):
            OFAPruner(Small(), INPUTS, quiet=True).reset_search_space({})
