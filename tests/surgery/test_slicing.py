"""Index arithmetic on slots: cutting, spreading out and masking tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from channelwise.errors import InvalidArgumentError
from channelwise.structure import TensorInfo
from channelwise.surgery.cuts import Cut, cut_tensors
from channelwise.surgery.slicing import removed_mask, scatter, slim_state_dict, take
from channelwise.surgery.slim import slim_model, sparse_state_dict
from channelwise.surgery.sparse import masked_model
from tests.surgery.small_networks import (
    CONV_NET_KEPT,
    GROUPED_KEPT,
    conv_net,
    group,
    grouped_net,
    select,
    structure,
)


def cut(shape: tuple[int, ...], **kept: list[int]) -> Cut:
    info = TensorInfo("weight", shape, True, "")
    return Cut(info, {int(axis[1:]): np.asarray(index) for axis, index in kept.items()})


def test_take_keeps_the_named_slots_of_every_axis() -> None:
    weight = torch.randn(4, 5, 3)
    assert torch.equal(take(weight, cut((4, 5, 3), a0=[1, 3], a1=[0, 4])), weight[[1, 3]][:, [0, 4]])


def test_every_block_keeps_its_own_columns() -> None:
    model, found = grouped_net()
    weight = model[1].weight
    expected = torch.stack([weight[1, [0, 3]], weight[2, [0, 3]], weight[3, [1, 2]], weight[5, [1, 2]]])
    assert torch.equal(take(weight, cut_tensors(found, select(found, **GROUPED_KEPT)).tensors["1.weight"]), expected)


def test_a_block_without_rows_disappears() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1, groups=4))
    every = np.arange(4)
    found = structure(model, group("g", ("0.weight", 0, every), ("0.weight", 1, every)), blocks={"0.weight": 4})
    made = cut_tensors(found, select(found, g=[1, 3])).tensors["0.weight"]
    assert torch.equal(take(model[0].weight, made), model[0].weight[[1, 3]])


@pytest.mark.parametrize("transposed", [False, True])
def test_scatter_undoes_take_and_agrees_with_the_mask(transposed: bool) -> None:
    model, found = grouped_net(transposed)
    for name, made in cut_tensors(found, select(found, **GROUPED_KEPT)).tensors.items():
        tensor = model.get_parameter(name)
        spread = scatter(take(tensor, made), made)
        assert torch.equal(spread, tensor.detach().masked_fill(removed_mask(made), 0)), name


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((6, 4, 3, 3), torch.channels_last),
        ((6, 4, 1, 1), torch.channels_last),
        ((6, 1, 3, 3), torch.channels_last),
        ((6, 4, 1, 1), torch.contiguous_format),
        ((6, 4, 2, 3, 3), torch.channels_last_3d),
    ],
)
def test_memory_format_stays(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    weight = torch.randn(shape).contiguous(memory_format=layout)
    made = cut(shape, a0=[0, 2, 5], **({"a1": [1, 2]} if shape[1] > 1 else {}))
    slim = take(weight, made)
    assert slim.is_contiguous(memory_format=layout)
    assert slim.stride() == torch.empty(made.shape).contiguous(memory_format=layout).stride()
    assert scatter(slim, made).is_contiguous(memory_format=layout)


def test_blocked_take_works_in_channels_last() -> None:
    model, found = grouped_net()
    made = cut_tensors(found, select(found, **GROUPED_KEPT)).tensors["1.weight"]
    plain = model[1].weight.detach()
    last = plain.contiguous(memory_format=torch.channels_last)
    slim = take(last, made)
    assert torch.equal(slim, take(plain, made))
    assert slim.is_contiguous(memory_format=torch.channels_last)


def test_blocked_take_works_with_any_order_of_axes_in_memory() -> None:
    model, found = grouped_net()
    made = cut_tensors(found, select(found, **GROUPED_KEPT)).tensors["1.weight"]
    plain = model[1].weight.detach()
    swapped = plain.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(take(swapped, made), take(plain, made))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int64, torch.bool, torch.complex64])
def test_dtype_stays(dtype: torch.dtype) -> None:
    made = cut((4, 3), a0=[1, 2])
    slim = take(torch.ones(4, 3).to(dtype), made)
    assert (slim.dtype, scatter(slim, made).dtype) == (dtype, dtype)


def test_wrong_shape_is_named_with_both_shapes() -> None:
    with pytest.raises(InvalidArgumentError, match=r"weight has shape \(5, 3\), expected \(4, 3\)"):
        take(torch.ones(5, 3), cut((4, 3), a0=[1]))


def test_state_dicts_convert_both_ways() -> None:
    model, found = conv_net()
    selection = select(found, **CONV_NET_KEPT)
    slim = slim_model(model, found, selection).state_dict()
    masked = masked_model(model, found, selection).state_dict()
    there, back = slim_state_dict(masked, found, selection), sparse_state_dict(slim, found, selection)
    assert list(there) == list(slim)
    assert list(back) == list(masked)
    assert all(torch.equal(there[name], slim[name]) for name in slim)
    assert all(torch.equal(back[name], masked[name]) for name in masked)


def test_whole_number_buffers_come_back_from_the_original() -> None:
    model = nn.Module()
    model.register_buffer("order", torch.arange(5, 9))
    model.register_buffer("mean", torch.ones(4))
    found = structure(model, group("g", ("mean", 0, np.arange(4)), ("order", 0, np.arange(4))))
    selection = select(found, g=[0, 3])
    slim = slim_state_dict(model.state_dict(), found, selection)
    back = sparse_state_dict(slim, found, selection, model.state_dict())
    assert back["order"].tolist() == [5, 6, 7, 8]
    assert back["mean"].tolist() == [1, 0, 0, 1]
