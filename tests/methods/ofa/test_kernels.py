"""Elastic kernels: 7 to 5 to 3, through matrices that start as the identity."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from channelwise.methods.ofa import DynamicConv2d
from channelwise.methods.ofa.kernels import kernel_candidates
from tests.methods.ofa.supernets import INPUTS, Checked, outputs, small, supernet


@pytest.mark.parametrize(
    ("conv", "candidates"),
    [
        (nn.Conv2d(4, 4, 7, padding=3), (3, 5, 7)),
        (nn.Conv2d(4, 4, 5, padding=2, groups=4), (3, 5)),
        (nn.Conv2d(4, 4, 5, padding="same"), (3, 5)),
        (nn.Conv2d(4, 4, 7, padding=6, dilation=2), (3, 5, 7)),
        (nn.Conv2d(4, 4, 7, padding=2, stride=2), (3, 5, 7)),
        (nn.Conv2d(4, 4, 7, padding=1), (7,)),  # without padding to give up the output would grow
        (nn.Conv2d(4, 4, 7), (7,)),
        (nn.Conv2d(4, 4, 7, padding="valid"), (7,)),
        (nn.Conv2d(4, 4, 7, padding=3, padding_mode="reflect"), (7,)),
        (nn.Conv2d(4, 4, 3, padding=1), (3,)),
        (nn.Conv2d(4, 4, 1), (1,)),
        (nn.Conv2d(4, 4, 4, padding=2), (4,)),
        (nn.Conv2d(4, 4, (7, 5), padding=2), ()),
        (nn.ConvTranspose2d(4, 4, 5, padding=2), ()),
        (nn.Conv1d(4, 4, 5, padding=2), ()),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 5, padding=2)), ()),
    ],
)
def test_square_odd_padded_kernels_can_shrink(conv: nn.Module, candidates: tuple[int, ...]) -> None:
    assert kernel_candidates(conv) == candidates


def with_kernel(pruner: Any, model: nn.Module, side: int) -> list[dict[str, Any]]:
    _, setting = pruner.sample_subnet(model, "max")
    setting[-1]["active_kernel_size"] = side
    pruner.set_subnet(model, setting)
    return setting


@pytest.mark.parametrize(
    "options",
    [
        {"padding": 3}, {"padding": "same"}, {"padding": 6, "dilation": 2}, {"padding": 4, "stride": 2},
        {"padding": 3, "groups": 8},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("side", [3, 5])
def test_a_smaller_kernel_is_the_middle_of_the_full_one(options: dict[str, Any], side: int) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 7, **options), nn.Conv2d(8, 4, 1)).eval()
    pruner, model = supernet(net, auto_add_excludes=False)
    setting = with_kernel(pruner, model, side)
    x = outputs(model[0])
    border = (7 - side) // 2
    conv = model[1]
    wide = torch.zeros_like(conv.weight)
    middle = slice(border, border + side)
    wide[..., middle, middle] = conv.weight.detach()[..., middle, middle]
    padding = net[1].padding
    expected = F.conv2d(x, wide, conv.bias, net[1].stride, padding, net[1].dilation, net[1].groups)
    torch.testing.assert_close(outputs(conv, x), expected)
    static = pruner.get_static_subnet(model, setting)[0]
    assert type(static[1]) is nn.Conv2d
    assert static[1].weight.shape[-2:] == (side, side)
    assert torch.equal(outputs(model), outputs(static))
    assert repr(static[1]) == repr(nn.Conv2d(8, 8, side, stride=net[1].stride, dilation=net[1].dilation,
        groups=net[1].groups, padding=static[1].padding))  # fmt: skip


@pytest.mark.parametrize("kernel", [5, 7])
def test_dynamic_equals_static_with_trained_matrices(kernel: int) -> None:
    pruner, model = supernet(small(kernel=kernel), auto_add_excludes=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_matrix"):
                parameter.add_(torch.randn(parameter.shape) * 0.1)
    for seed in range(6):
        _, setting = pruner.sample_subnet(model, seed=seed)
        static, _, _, params = pruner.get_static_subnet(model, setting)
        assert torch.equal(outputs(model), outputs(static))
        assert "7to5_matrix" not in dict(static.depthwise[0].named_parameters())
        assert round(params * 1e6) == sum(p.numel() for p in static.parameters())


def test_costs_shrink_with_the_kernel() -> None:
    Checked(small(kernel=7), INPUTS)


def test_matrices_learn_and_the_rest_of_them_gets_zeros() -> None:
    pruner, model = supernet(small(kernel=7))
    conv = model.depthwise[0]
    assert isinstance(conv, DynamicConv2d)
    for side, learning in ((7, set()), (5, {"7to5_matrix"}), (3, {"7to5_matrix", "5to3_matrix"})):
        with_kernel(pruner, model, side)
        model.zero_grad()
        model(INPUTS).square().sum().backward()
        grads = {name: p.grad for name, p in conv.named_parameters() if name.endswith("_matrix")}
        # None would have DistributedDataParallel complain of unused parameters.
        assert all(grad is not None for grad in grads.values())
        assert {name for name, grad in grads.items() if grad.any()} == learning  # type: ignore[union-attr]


def test_outside_the_middle_the_kernel_learns_nothing() -> None:
    pruner, model = supernet(small(kernel=7))
    with_kernel(pruner, model, 3)
    model(INPUTS).square().sum().backward()
    grad = model.depthwise[0].weight.grad.clone()
    assert grad[..., 2:5, 2:5].any()
    # Through the matrix of 7 to 5, which maps the 5x5 middle, all of that may learn; identity reaches the 3x3 only.
    grad[..., 2:5, 2:5] = 0
    assert not grad.any()


def test_checkpoints_of_the_original_and_of_supernets_load_strictly() -> None:
    original = small(kernel=7)
    _, model = supernet(original)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_matrix"):
                parameter.mul_(2)
    state = copy.deepcopy(model.state_dict())
    assert {n for n in state if n.endswith("_matrix")} == {f"depthwise.0.{m}_matrix" for m in ("7to5", "5to3")}
    assert not model.load_state_dict(original.state_dict()).missing_keys
    torch.testing.assert_close(outputs(model), outputs(original))
    assert torch.equal(model.depthwise[0].get_parameter("7to5_matrix"), torch.eye(25))
    model.load_state_dict(state)
    assert torch.equal(model.depthwise[0].get_parameter("7to5_matrix"), 2 * torch.eye(25))
    del state["depthwise.0.5to3_matrix"]
    with pytest.raises(RuntimeError, match="5to3_matrix"):
        model.load_state_dict(state)


def test_kernels_stay_when_asked() -> None:
    pruner, model = supernet(elastic_kernel=False)
    assert not [n for n in model.state_dict() if n.endswith("_matrix")]
    assert all(choice.kind == "width" for choice in pruner.search_space.choices)


def test_the_kernel_alone_can_be_the_choice() -> None:
    pruner, model = supernet(expand_ratio=[1])
    assert [c.name for c in pruner.search_space.choices if len(c.candidates) > 1] == ["depthwise.0 kernel"]
    _, setting = pruner.sample_subnet(model, "min")
    assert torch.equal(outputs(model), outputs(pruner.get_static_subnet(model, setting)[0]))
