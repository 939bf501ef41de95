"""Dynamic layers: the layers of PyTorch with the active part of their channels."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from channelwise.methods import ofa
from channelwise.methods.ofa import Dynamic, DynamicConv2d, DynamicModule
from channelwise.methods.ofa.active import Part, put_active, take_active
from channelwise.methods.ofa.layers import dynamic_class
from channelwise.surgery.slicing import SlotIndex
from tests.methods.ofa.supernets import INPUTS, outputs, supernet


def slots(numbers: Any) -> SlotIndex:
    return SlotIndex(np.array(numbers))


PLAIN = [
    nn.Conv1d(4, 6, 3), nn.Conv2d(4, 6, 3, groups=2), nn.Conv3d(4, 6, 3), nn.ConvTranspose1d(4, 6, 3),
    nn.ConvTranspose2d(4, 6, 3, groups=2, stride=2), nn.ConvTranspose3d(4, 6, 3), nn.Linear(4, 6), nn.BatchNorm1d(4),
    nn.BatchNorm2d(4), nn.BatchNorm3d(4), nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.PReLU(4),
]  # fmt: skip


@pytest.mark.parametrize("plain", PLAIN, ids=lambda m: type(m).__name__)
def test_at_full_width_they_are_the_layer_itself(plain: nn.Module) -> None:
    dims = 3 if "3d" in type(plain).__name__ else 1 if "1d" in type(plain).__name__ else 2
    x = torch.randn(2, 5, 5, 4) if isinstance(plain, (nn.Linear, nn.LayerNorm)) else torch.randn(2, 4, *[5] * dims)
    dynamic = copy.deepcopy(plain)
    dynamic.__class__ = dynamic_class(type(plain), ["weight"])
    assert isinstance(dynamic, type(plain))
    assert type(dynamic).__name__ in ofa.__all__
    for _ in range(2):
        assert torch.equal(dynamic(x), plain(x))
    for name, tensor in plain.state_dict().items():
        assert torch.equal(dynamic.state_dict()[name], tensor)
    assert list(dynamic.state_dict()) == list(plain.state_dict())


def test_they_can_be_made_like_the_layers_they_are() -> None:
    conv = DynamicConv2d(3, 8, 3, padding=1)
    conv._active = {"weight": Part(((0, 4),)), "bias": Part(((0, 4),))}
    x = torch.randn(1, 3, 5, 5)
    assert torch.equal(conv(x), F.conv2d(x, conv.weight[:4], conv.bias[:4], padding=1))


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (Part(((0, 2), (1, 3))), lambda t: t[:2, :3]),
        (Part(((1, 1),), {0: slots([0, 3])}), lambda t: t[[0, 3], :1]),
        (Part(columns=slots([[0, 1]] * 3 + [[1, 4]] * 3)), lambda t: torch.cat([t[:3, :2], t[3:, [1, 4]]])),
        (None, lambda t: t),
    ],
    ids=["prefix", "index", "columns", "all"],
)
def test_gradients_are_zero_outside_the_active_slots(part: Part | None, expected: Any) -> None:
    weight = torch.randn(6, 5, 2, 2, requires_grad=True)
    taken = take_active(weight, part)
    assert torch.equal(taken, expected(weight))
    taken.sum().backward()
    mask = torch.zeros(6, 5, 2, 2, requires_grad=True)
    expected(mask).sum().backward()
    assert torch.equal(weight.grad, mask.grad)


def test_put_active_writes_the_active_slots_only() -> None:
    for part in (Part(((0, 3),)), Part(index={0: slots([1, 4, 5])}), None):
        whole = torch.zeros(6)
        value = torch.full_like(take_active(whole, part), 2.0)
        put_active(whole, part, value)
        expected = torch.zeros(6)
        expected[slice(None) if part is None else [1, 4, 5] if part.index else slice(3)] = 2
        assert torch.equal(whole, expected)


def test_parts_are_shared_by_copies_and_survive_pickling() -> None:
    part = Part(((1, 2),), {0: slots([0, 2])}, slots([[1]]))
    assert copy.deepcopy(part) is part
    again = pickle.loads(pickle.dumps(part))
    assert again.prefix == part.prefix
    assert again.index[0].slots.tolist() == [0, 2]
    assert again.columns.slots.tolist() == [[1]]


class Norms(nn.Module):
    """A concatenation, so that the norm behind it keeps slots that are no prefix."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.a, self.b, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), norm, nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(torch.cat([self.a(x), self.b(x)], 1)).relu())


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(16), nn.BatchNorm2d(16, momentum=None), nn.BatchNorm2d(16, affine=False),
        nn.BatchNorm2d(16, track_running_stats=False), nn.SyncBatchNorm(16),
        nn.InstanceNorm2d(16, affine=True, track_running_stats=True),
    ],
    ids=["plain", "cumulative", "bare", "untracked", "sync", "instance"],
)  # fmt: skip
def test_norms_train_the_statistics_of_active_channels_only(norm: nn.Module) -> None:
    pruner, model = supernet(Norms(norm), expand_ratio=[0.5, 1], auto_add_excludes=False)
    before = {name: b.clone() for name, b in model.norm.named_buffers()}
    _, setting = pruner.sample_subnet(model, "min")
    static = pruner.get_static_subnet(model, setting)[0].train()
    model.train()
    for _ in range(2):
        torch.testing.assert_close(model(INPUTS), static(INPUTS))
    theirs = dict(static.norm.named_buffers())
    for name, buffer in model.norm.named_buffers():
        if buffer.dim():
            active = [*range(4), *range(8, 12)]
            torch.testing.assert_close(buffer[active], theirs[name])
            idle = [*range(4, 8), *range(12, 16)]
            assert torch.equal(buffer[idle], before[name][idle])
        else:
            assert buffer == theirs[name]


def test_batch_norm_of_the_narrow_subnet_evaluates_with_active_statistics() -> None:
    pruner, model = supernet()
    _, setting = pruner.sample_subnet(model, "min")
    model.train()
    model(INPUTS)
    static = pruner.get_static_subnet(model, setting)[0]
    assert torch.equal(outputs(model), outputs(static))


class OwnConv(nn.Conv2d):
    """A user's layer with code and a buffer of its own, which it replaces and reads again."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.gain = nn.Parameter(torch.rand(self.out_channels))
        self.register_buffer("level", torch.rand(self.out_channels))

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x) * self.gain[:, None, None]
        if self.training:
            self.level = 0.5 * self.level + y.detach().mean((0, 2, 3))
        return y - self.level[:, None, None]


def test_a_users_layer_runs_with_its_active_tensors() -> None:
    net = nn.Sequential(OwnConv(3, 8, 3), nn.ReLU(), OwnConv(8, 8, 3), nn.Conv2d(8, 4, 1))
    pruner, model = supernet(net, auto_add_excludes=False)
    assert isinstance(model[0], OwnConv)
    assert isinstance(model[0], DynamicModule)
    _, setting = pruner.sample_subnet(model, "min")
    static = pruner.get_static_subnet(model, setting)[0]
    assert type(static[0]) is OwnConv
    before = model[0].level.clone()
    for train in (True, False):
        torch.testing.assert_close(model.train(train)(INPUTS), static.train(train)(INPUTS))
    n = len(static[0].level)
    assert n < 8
    torch.testing.assert_close(model[0].level[:n], static[0].level)
    assert torch.equal(model[0].level[n:], before[n:])
    assert isinstance(model[0]._parameters["weight"], nn.Parameter)
    assert model[0].weight.shape == (8, 3, 3, 3)


def test_an_error_in_a_users_layer_leaves_it_whole() -> None:
    net = nn.Sequential(OwnConv(3, 8, 3), nn.Conv2d(8, 4, 1))
    pruner, model = supernet(net, auto_add_excludes=False)
    pruner.sample_subnet(model, "min")
    with pytest.raises(RuntimeError):
        model(torch.randn(1, 5, 8, 8))
    assert isinstance(model[0]._parameters["weight"], nn.Parameter)
    assert model[0].weight.shape == (8, 3, 3, 3)
    assert outputs(model).shape == (4, 4, 8, 8)


class Recursive(nn.Module):
    """Calls itself."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor, depth: int = 2) -> Tensor:
        x = x * self.scale[:, None, None]
        return self(x, depth - 1) if depth else x


def test_a_module_that_calls_itself_is_narrowed_once() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), Recursive(), nn.Conv2d(8, 4, 1))
    pruner, model = supernet(net, auto_add_excludes=False)
    _, setting = pruner.sample_subnet(model, "min")
    assert torch.equal(outputs(model), outputs(pruner.get_static_subnet(model, setting)[0]))


def test_a_replica_as_data_parallel_makes_them_runs() -> None:
    net = nn.Sequential(OwnConv(3, 8, 3), Recursive(), nn.Conv2d(8, 8, 5, padding=2), nn.Conv2d(8, 4, 1))
    pruner, model = supernet(net, auto_add_excludes=False)
    for mode in ("min", "max"):
        pruner.sample_subnet(model, mode)  # type: ignore[arg-type]
        expected = outputs(model)
        replicas = []
        for layer in model:
            replica = layer._replicate_for_data_parallel()
            for name, parameter in layer._parameters.items():
                setattr(replica, name, None if parameter is None else parameter * 1)
            replicas.append(replica)
        for _ in range(2):
            x = INPUTS
            for replica in replicas:
                x = replica(x)
            assert torch.equal(x, expected)


def test_dynamic_classes_are_made_once_and_survive_pickling() -> None:
    assert dynamic_class(OwnConv, []) is dynamic_class(OwnConv, [])
    net = nn.Sequential(OwnConv(3, 8, 3), nn.Conv2d(8, 4, 1))
    pruner, model = supernet(net, auto_add_excludes=False)
    pruner.sample_subnet(model, "min")
    again = pickle.loads(pickle.dumps(model))
    assert type(again[0]) is type(model[0])
    assert torch.equal(outputs(again), outputs(model))


def test_layers_say_what_is_active() -> None:
    pruner, model = supernet()
    pruner.sample_subnet(model, "min")
    narrow = model.first[0]
    assert narrow.out_channels < 24
    assert f"16, {narrow.out_channels}, kernel_size" in repr(narrow)
    assert model.first[1].num_features == narrow.out_channels
    assert model.depthwise[0].groups == model.depthwise[0].in_channels < 32
    pruner.sample_subnet(model, "max")
    assert (narrow.out_channels, model.depthwise[0].groups) == (24, 32)


def test_only_layers_that_can_change_are_dynamic() -> None:
    _, model = supernet()
    assert type(model.stem[0]) is nn.Conv2d
    assert not isinstance(model, Dynamic)
    assert isinstance(model.first[0], DynamicConv2d)
