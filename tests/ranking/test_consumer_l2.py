"""A channel counts as much as the weights that read it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import channelwise as cw
from channelwise.ranking import Weights, scores
from channelwise.structure import Group, TensorInfo
from tests.handmade import random_tensors, single, slots


def conv(name, *shape, blocks=1, is_parameter=True):
    return TensorInfo(name, shape, is_parameter, name.rpartition(".")[0], blocks)


def score(group, infos, tensors):
    return scores("consumer_l2", group, Weights.of(tensors, single(group, infos)))


def test_it_is_the_norm_over_all_input_slices_that_read_a_channel_and_of_nothing_else():
    group = Group(
        "g",
        3,
        (
            slots("a.weight", 0, [0, 1, 2], "output"),
            slots("n.weight", 0, [0, 1, 2], "scale"),
            slots("c.weight", 1, [2, 0, 1], "input"),
            slots("fc.weight", 1, [[0, 1], [2, 3], [4, 5]], "input"),
        ),
    )
    infos = [conv("a.weight", 3, 2, 3, 3), conv("n.weight", 3), conv("c.weight", 4, 3, 3, 3), conv("fc.weight", 5, 6)]
    tensors = random_tensors(single(group, infos))
    c, fc = tensors["c.weight"][:, [2, 0, 1]].double(), tensors["fc.weight"].double()
    expected = [(c[:, i].square().sum() + fc[:, 2 * i : 2 * i + 2].square().sum()).sqrt().item() for i in range(3)]
    np.testing.assert_allclose(score(group, infos, tensors), expected, rtol=1e-6)


def test_a_part_of_a_grouped_convolution_reads_its_own_channels_only():
    """Four channels read by two parts: part b has rows 3b to 3b + 2 and reads channels 2b and 2b + 1."""
    group = Group("g", 4, (slots("c.weight", 1, range(4), "input"),), np.repeat([0, 1], 2))
    weight = torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    expected = [weight[3 * (i // 2) : 3 * (i // 2) + 3, i % 2].norm().item() for i in range(4)]
    result = score(group, [conv("c.weight", 6, 2, 3, 3, blocks=2)], {"c.weight": weight})
    np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_a_depthwise_kernel_passes_channels_on_and_does_not_count_as_reading_them():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1))
    graph = cw.trace(model, torch.zeros(1, 3, 8, 8))
    result = scores("consumer_l2", graph.groups[0], Weights.of(graph.tensors(), graph.structure))
    np.testing.assert_allclose(
        result, torch.linalg.vector_norm(model[2].weight.detach(), dim=(0, 2, 3)).numpy(), rtol=1e-6
    )


def test_channels_that_no_weight_reads_are_scored_by_the_weights_that_produce_them():
    group = Group("g", 2, (slots("a.weight", 0, [0, 1], "output"),))
    weight = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    assert score(group, [conv("a.weight", 2, 2)], {"a.weight": weight}).tolist() == [5.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_added_up_in_single_precision(dtype):
    weight = torch.ones(4096, 2, dtype=dtype)
    weight[0, 1] = 2
    group = Group("g", 2, (slots("c.weight", 1, [0, 1], "input"),))
    result = score(group, [conv("c.weight", 4096, 2)], {"c.weight": weight})
    np.testing.assert_allclose(result**2, [4096, 4099], rtol=1e-6)
