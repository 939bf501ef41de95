"""Slim models compute what masked ones do, out of the user's own classes, and leave the original alone."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from channelwise.errors import InvalidArgumentError
from channelwise.structure import Structure
from channelwise.surgery.slim import attach_sparse_state_dict, slim_model
from channelwise.surgery.sparse import masked_model, sparse_model
from tests.surgery.small_networks import (
    CONV_NET_KEPT,
    GROUPED_KEPT,
    ConvNet,
    conv_net,
    depthwise_net,
    group,
    grouped_net,
    image,
    select,
    structure,
)

NETWORKS = {
    "plain": (conv_net, CONV_NET_KEPT),
    "depthwise": (depthwise_net, {"stem": [1, 2, 6]}),
    "grouped": (grouped_net, GROUPED_KEPT),
    "grouped transposed": (lambda: grouped_net(transposed=True), GROUPED_KEPT),
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("network", NETWORKS)
def test_slim_computes_what_masked_does(network: str, layout: torch.memory_format) -> None:
    make, kept = NETWORKS[network]
    model, found = make()
    model = model.double().eval().to(memory_format=layout)
    selection = select(found, **kept)
    x = image().double()
    slim = slim_model(model, found, selection)
    torch.testing.assert_close(slim(x), masked_model(model, found, selection)(x), rtol=1e-10, atol=1e-10)
    assert sum(p.numel() for p in slim.parameters()) < sum(p.numel() for p in model.parameters())


def test_the_original_is_untouched() -> None:
    model, found = conv_net()
    model(image()).sum().backward()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    grads = {name: p.grad for name, p in model.named_parameters()}
    slim_model(model, found, select(found, **CONV_NET_KEPT))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is grads[name] for name, p in model.named_parameters())
    assert (model.conv1.out_channels, model.bn.num_features) == (8, 8)


def test_gradients_are_left_behind() -> None:
    model, found = conv_net()
    model(image()).sum().backward()
    slim = slim_model(model, found, select(found, conv2=[0]))
    assert all(p.grad is None for p in slim.parameters())


def test_flags_stay() -> None:
    model, found = conv_net()
    model.eval()
    model.conv2.train()
    model.conv1.weight.requires_grad_(False)
    slim = slim_model(model, found, select(found, **CONV_NET_KEPT))
    assert [m.training for m in slim.modules()] == [m.training for m in model.modules()]
    assert [p.requires_grad for p in slim.parameters()] == [p.requires_grad for p in model.parameters()]


def test_slim_is_plain() -> None:
    model, found = conv_net()
    slim = slim_model(model, found, select(found, **CONV_NET_KEPT))
    assert type(slim) is ConvNet
    assert slim.__dict__.keys() == model.__dict__.keys()
    hooks = [m for m in slim.modules() if m._forward_pre_hooks or m._forward_hooks or m._load_state_dict_post_hooks]
    assert not hooks
    assert all(p._backward_hooks is None for p in slim.parameters())


def test_slim_of_a_sparse_model_carries_no_guard() -> None:
    model, found = conv_net()
    sparse = sparse_model(model, found, select(found, conv1=[0, 1, 2, 3]))
    slim = slim_model(sparse, found, select(found, conv1=[0, 1]))
    assert slim.__dict__.keys() == model.__dict__.keys()
    assert not slim._forward_pre_hooks
    assert not slim._load_state_dict_post_hooks
    slim(image()).sum().backward()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_slim_copies_and_trains(copied: Callable[[nn.Module], nn.Module]) -> None:
    model, found = conv_net()
    slim = copied(slim_model(model, found, select(found, **CONV_NET_KEPT)))
    optimizer = torch.optim.SGD(slim.parameters(), lr=0.1)
    slim(image()).sum().backward()
    optimizer.step()
    assert slim(image()).shape == (2, 5)


def test_shared_tensors_stay_shared() -> None:
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.ReLU(), nn.Linear(6, 6, bias=False))
    model[2].weight = model[0].weight
    every = np.arange(6)
    found = structure(
        model, group("g", ("0.weight", 0, every), ("0.weight", 1, every)), aliases={"2.weight": "0.weight"}
    )
    slim = slim_model(model, found, select(found, g=[0, 4]))
    assert slim[2].weight is slim[0].weight
    assert (slim[2].in_features, slim[2].out_features) == (2, 2)


def test_a_model_called_under_inference_mode_gives_a_trainable_slim_model() -> None:
    model, found = conv_net()
    with torch.inference_mode():
        slim = slim_model(model, found, select(found, conv2=[0, 1]))
    assert not any(t.is_inference() for t in slim.state_dict().values())
    slim(image()).sum().backward()


def test_share_untouched_shares_parameters_and_copies_buffers() -> None:
    model, found = conv_net()
    slim = slim_model(model, found, select(found, conv2=[0, 1]), share_untouched=True)
    assert slim.conv1.weight is model.conv1.weight
    assert slim.conv2.weight is not model.conv2.weight
    assert slim.bn.running_mean.data_ptr() != model.bn.running_mean.data_ptr()


def test_another_model_is_refused_by_name_and_shapes() -> None:
    _, found = conv_net()
    other = ConvNet()
    other.conv1 = nn.Conv2d(3, 9, 3)
    with pytest.raises(
        InvalidArgumentError, match=r"'conv1.weight' had shape \(8, 3, 3, 3\) .* and has \(9, 3, 3, 3\) now"
    ):
        slim_model(other, found, select(found, conv1=[0]))
    with pytest.raises(InvalidArgumentError, match=r"ReLU has no tensor 'conv1.weight'"):
        slim_model(nn.ReLU(), found, select(found, conv1=[0]))


def _with_sparse_state_dict() -> tuple[nn.Module, nn.Module, Structure]:
    model, found = conv_net()
    selection = select(found, **CONV_NET_KEPT)
    return model, attach_sparse_state_dict(slim_model(model, found, selection), found, selection), found


def test_sparse_state_dict_loads_into_the_original() -> None:
    model, slim, _ = _with_sparse_state_dict()
    model.load_state_dict(slim.sparse_state_dict())
    x = image()
    torch.testing.assert_close(model.eval()(x), slim.eval()(x))


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_sparse_state_dict_survives_copies_and_follows_the_copy(how: str) -> None:
    _, slim, _ = _with_sparse_state_dict()
    if how == "torch.save":
        file = io.BytesIO()
        torch.save(slim, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    else:
        twin = copy.deepcopy(slim) if how == "deepcopy" else pickle.loads(pickle.dumps(slim))
    with torch.no_grad():
        twin.fc.bias.fill_(7)
    assert twin.sparse_state_dict()["fc.bias"].tolist() == [7] * 5
    assert slim.sparse_state_dict()["fc.bias"].tolist() != [7] * 5
