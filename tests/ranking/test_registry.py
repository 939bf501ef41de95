"""Criteria are found by name, and a user's criterion is checked before it decides anything."""

import numpy as np
import pytest
import torch

from channelwise.errors import InvalidArgumentError
from channelwise.ranking import Fisher, Random, Taylor, bind, comparable, get, names, register, registry, scores
from tests.handmade import chain, random_tensors

GROUP = chain([4]).groups[0]


def test_the_promised_criteria_are_registered():
    assert {"l1", "l2", "bn_scale", "fpgm", "random", "consumer_l2"} <= set(names())


def test_an_unknown_name_is_refused_with_the_nearest_one():
    with pytest.raises(InvalidArgumentError, match="Did you mean 'fpgm'"):
        get("fgpm")


def test_what_is_neither_name_nor_callable_is_refused():
    with pytest.raises(InvalidArgumentError, match="not 3"):
        get(3)


def test_a_registered_criterion_is_used_by_name(monkeypatch):
    monkeypatch.setattr(registry, "_criteria", dict(registry._criteria))
    register("by_index")(lambda group, tensors: np.arange(group.size))
    assert scores("by_index", GROUP, {}).tolist() == [0, 1, 2, 3]


def test_a_name_that_is_taken_is_refused():
    with pytest.raises(InvalidArgumentError, match="'l1' is registered already"):
        register("l1")(lambda group, tensors: np.arange(group.size))


@pytest.mark.parametrize("name", ["taylor", "Fisher"])
def test_a_gradient_ranking_asked_for_by_name_is_told_how_to_make_one(name):
    with pytest.raises(InvalidArgumentError, match=rf"ranking\.{name.capitalize()}\(loss, loader\)"):
        get(name)


def test_a_class_in_place_of_an_instance_is_refused():
    with pytest.raises(InvalidArgumentError, match=r"give an instance, Random\(\.\.\.\)"):
        get(Random)


def test_a_criterion_with_bind_sees_the_model_and_is_replaced_by_what_it_returns():
    class Bindable:
        def bind(self, model, structure):
            return lambda group, tensors: np.full(group.size, model)

    structure = chain([4])
    assert scores(bind(Bindable(), 7, structure), GROUP, {}).tolist() == [7, 7, 7, 7]
    with pytest.raises(InvalidArgumentError, match=r"'Bindable' needs the model: use .*bind\("):
        scores(Bindable(), GROUP, {})


def test_a_criterion_without_bind_needs_no_model_and_keeps_its_name(monkeypatch):
    monkeypatch.setattr(registry, "_criteria", dict(registry._criteria))
    register("no_numbers")(lambda group, tensors: None)
    bound = bind("no_numbers", None, chain([4]))
    with pytest.raises(InvalidArgumentError, match="'no_numbers'"):
        scores(bound, GROUP, {})


def test_only_criteria_that_say_so_have_scores_of_one_scale():
    assert not comparable("l1")
    assert comparable(Taylor(len, []))
    assert comparable(Fisher(len, []))


@pytest.mark.parametrize(
    "values",
    [[1, 2, 3, 4], (1.0, 2, 3, 4), torch.tensor([1, 2, 3, 4]), torch.tensor([1.0, 2, 3, 4], dtype=torch.bfloat16)],
    ids=["list", "tuple", "int tensor", "bf16 tensor"],
)
def test_scores_may_come_as_any_sequence_of_numbers(values):
    result = scores(lambda group, tensors: values, GROUP, {})
    assert result.dtype == np.float64
    assert result.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([1, 2, 3], r"shape \(3,\)"),
        (np.ones((4, 1)), r"shape \(4, 1\)"),
        (5.0, r"shape \(\)"),
        ([1, 2, 3, float("nan")], "channel 3 .* nan"),
        ([1, -float("inf"), 3, 4], "channel 1 .* -inf"),
        (None, "NoneType"),
        (["a", "b", "c", "d"], "list"),
        ([1, [2], 3, 4], "list"),
        (torch.zeros(4, dtype=torch.complex64), "Tensor"),
    ],
)
def test_unusable_scores_are_refused_with_criterion_and_group(values, text):
    def mine(group, tensors):
        return values

    with pytest.raises(InvalidArgumentError, match=text) as caught:
        scores(mine, GROUP, {})
    assert "mine" in str(caught.value)
    assert "net.0.conv" in str(caught.value)


def test_nan_weights_are_reported_and_not_ranked():
    structure = chain([4])
    tensors = random_tensors(structure)
    tensors["net.0.conv.weight"][2, 0, 0, 0] = float("nan")
    with pytest.raises(InvalidArgumentError, match=r"channel 2 of the group 'net\.0.conv'"):
        scores("l1", GROUP, tensors)
