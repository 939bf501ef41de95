"""Copies of models with some tensors replaced."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from channelwise.errors import UnsupportedModelError
from channelwise.surgery.clone import clone_module


class Scale(nn.Parameter):
    """A parameter class with a constructor of its own."""

    def __new__(cls, width: int, height: int) -> Scale:
        return torch.Tensor._make_subclass(cls, torch.ones(width, height), True)


def test_replaced_tensors_take_the_place_of_every_reference() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    model.also = [model[0].weight]
    new = nn.Parameter(torch.zeros(1, 2))
    clone = clone_module(model, {id(model[0].weight): new})
    assert clone[0].weight is new
    assert clone[1].weight is new
    assert clone.also[0] is new


def test_cached_activations_are_detached() -> None:
    model = nn.Linear(2, 2)
    model.cache = {"last": [model(torch.ones(1, 2))]}
    clone = clone_module(model, {})
    copied = clone.cache["last"][0]
    assert copied.grad_fn is None
    assert torch.equal(copied, model.cache["last"][0])
    assert model.cache["last"][0].grad_fn is not None


def test_a_tensor_cached_twice_is_one_tensor() -> None:
    model = nn.Linear(2, 2)
    model.a = model(torch.ones(1, 2))
    model.b = model.a
    clone = clone_module(model, {})
    assert clone.a is clone.b


def test_gradients_of_plain_tensors_are_left_behind() -> None:
    model = nn.Linear(2, 2)
    model.temperature = torch.ones(1, requires_grad=True)
    (model.temperature * 2).backward()
    clone = clone_module(model, {})
    assert clone.temperature.grad is None
    assert clone.temperature.requires_grad
    assert model.temperature.grad is not None


def test_classes_and_attributes_of_parameters_stay() -> None:
    model = nn.Module()
    model.scale = Scale(2, 3)
    model.scale.no_weight_decay = True
    clone = clone_module(model, {})
    assert type(clone.scale) is Scale
    assert clone.scale.no_weight_decay
    assert clone.scale.data_ptr() != model.scale.data_ptr()


def test_user_hooks_and_user_attributes_come_along() -> None:
    model = nn.Linear(2, 2)
    model.slim_state_dict = "mine"
    model.register_forward_pre_hook(print)
    clone = clone_module(model, {})
    assert clone.slim_state_dict == "mine"
    assert list(clone._forward_pre_hooks.values()) == [print]


def test_hooks_that_close_over_the_model_use_the_copy() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model.seen = {}
    seen = model.seen
    model[1].register_forward_hook(lambda module, args, out: model.seen.update(closure=out))
    model[1].register_forward_hook(lambda module, args, out, owner=model: owner.seen.update(default=out))
    model[1].register_forward_hook(lambda module, args, out: seen.update(attribute=out))
    clone = clone_module(model, {})
    clone(torch.ones(1, 2))
    assert sorted(clone.seen) == ["attribute", "closure", "default"]
    assert model.seen == {}


def test_a_patched_forward_uses_the_copy() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    layer, plain = model[0], model.forward
    layer.forward = lambda x: torch.nn.functional.linear(x, layer.weight)
    model.forward = lambda x: plain(x) + 1
    clone = clone_module(model, {id(layer.weight): nn.Parameter(torch.eye(2) * 5)})
    assert torch.equal(clone(torch.ones(1, 2)), torch.full((1, 2), 6.0))


def test_what_a_hook_collects_outside_the_model_stays_the_users() -> None:
    collected: list[torch.Tensor] = []
    model = nn.Linear(2, 2)

    def collect(module: nn.Module, args: object, out: torch.Tensor) -> None:
        collected.append(out)

    model.register_forward_hook(collect)
    clone = clone_module(model, {})
    assert list(clone._forward_hooks.values()) == [collect]


network = nn.Sequential(nn.Linear(2, 2), nn.ReLU())


def test_a_hook_that_uses_the_model_as_a_global_variable_is_refused() -> None:
    handle = network[1].register_forward_hook(lambda module, args, out: network[0].weight.sum() + out)
    with pytest.raises(UnsupportedModelError, match=r"_forward_hooks.*global variable 'network'"):
        clone_module(network, {})
    handle.remove()
    clone_module(network, {})


def test_what_cannot_be_copied_is_said() -> None:
    model = nn.Linear(2, 2)
    model.lock = threading.Lock()
    with pytest.raises(UnsupportedModelError, match=r"Linear cannot be copied \(TypeError.*lock"):
        clone_module(model, {})


def test_buffers_that_share_memory_go_on_sharing_it() -> None:
    model = nn.Module()
    model.register_buffer("whole", torch.arange(4.0))
    model.register_buffer("part", model.whole[1:3])
    model.register_buffer("alone", torch.ones(2, 3).t())
    clone = clone_module(model, {})
    clone.whole[1] = 9
    assert clone.part.tolist() == [9, 2]
    assert model.part.tolist() == [1, 2]
    assert clone.alone.stride() == model.alone.stride()
    assert clone.alone.data_ptr() != model.alone.data_ptr()
