"""Channels are put in order of importance once; what the network computes does not change by that."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import channelwise as cw
from channelwise.methods.ofa import OFAPruner
from channelwise.methods.ofa.sorting import Prefixes, _columns_stray, importance_order, sorted_tensors
from channelwise.ranking import Weights, bind, scores
from channelwise.structure import Group, Structure, TensorInfo
from channelwise.testing import randomise
from channelwise.testing.values import distance
from tests.methods.ofa.supernets import INPUTS, outputs, small


class Grouped(nn.Module):
    """A grouped convolution of 4 blocks behind a plain one, and a concatenation in front of another."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3, padding=1)
        self.b = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.c = nn.Conv2d(32, 24, 1, groups=2)
        self.head = nn.Conv2d(24, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x).relu()
        return self.head(self.c(torch.cat([a, self.b(a).relu()], 1)).relu())


def orders(model: nn.Module, ranking: str = "l1") -> tuple[cw.ChannelGraph, dict[str, np.ndarray]]:
    graph = cw.trace(model, INPUTS)
    weights = Weights.of(graph.tensors(), graph.structure)
    return graph, importance_order(graph.structure, weights, bind(ranking, graph.model, graph.structure))


def test_the_most_important_channels_come_first_in_every_part() -> None:
    graph, found = orders(Grouped())
    assert found
    weights = Weights.of(graph.tensors(), graph.structure)
    criterion = bind("l1", graph.model, graph.structure)
    for group in graph.groups:
        order = found.get(group.name)
        if order is None:
            continue
        assert sorted(order) == list(range(group.size))
        values = scores(criterion, group, weights)[order]
        parts = np.zeros(group.size, int) if group.parts is None else group.parts
        assert np.array_equal(parts[order], parts), "a channel left its part"
        for part in np.unique(parts):
            mine = values[parts == part]
            assert (np.diff(mine) <= 1e-12).all()


def test_a_sorted_network_computes_what_the_original_does() -> None:
    for model in (Grouped().double().eval(), small().double()):
        randomise(model)
        graph = cw.trace(model, INPUTS.double())
        weights = Weights.of(graph.tensors(), graph.structure)
        order = importance_order(graph.structure, weights, bind("l1", graph.model, graph.structure))
        tensors = dict(graph.tensors())
        moved = sorted_tensors(graph.structure, tensors, order)
        assert moved
        with torch.no_grad():
            expected = model(INPUTS.double())
            found = torch.func.functional_call(
                model, {**dict(model.named_buffers()), **tensors, **moved}, INPUTS.double()
            )
        assert distance([found], [expected]) < 1e-12
        for name, tensor in moved.items():
            assert tensor.shape == tensors[name].shape
            assert torch.equal(tensor.flatten().sort().values, tensors[name].flatten().sort().values)


def test_moved_tensors_are_new_and_the_originals_stay() -> None:
    model = small()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    supernet = OFAPruner(model, INPUTS, quiet=True).ofa_model()
    with torch.no_grad():
        for tensor in supernet.parameters():
            tensor.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_channels_that_were_pruned_to_zero_go_last() -> None:
    model = small()
    with torch.no_grad():
        dead = [0, 5, 9]
        for tensor in (model.first[0].weight, model.first[1].weight, model.first[1].bias):
            tensor[dead] = 0
        model.second[0].weight[:, dead] = 0
    _, found = orders(model)
    assert set(found["first.0"][-3:].tolist()) == set(dead)


def test_a_narrow_subnet_keeps_the_channels_that_pruning_would_keep() -> None:
    model = small()
    pruner = OFAPruner(model, INPUTS, ranking="l1", quiet=True)
    supernet = pruner.ofa_model([0.5, 1], 1, auto_add_excludes=False, elastic_kernel=False)
    pruner.sample_subnet(supernet, "min")
    graph = cw.trace(model, INPUTS)
    slim = graph.slim(graph.select(sparsity=0.5, ranking="l1"))
    torch.testing.assert_close(outputs(supernet), outputs(slim), rtol=1e-4, atol=1e-5)


def test_other_rankings_give_other_orders() -> None:
    _, l1 = orders(small(), "l1")
    _, consumer = orders(small(), "consumer_l2")
    assert any(not np.array_equal(l1[name], consumer[name]) for name in l1)


def test_prefixes_of_parts() -> None:
    parts = (None, np.array([0, 1, 0, 1, 0, 1]), np.repeat([0, 1, 2], 2))
    groups = tuple(Group(f"g{i}", 6, (), part) for i, part in enumerate(parts))
    prefixes = Prefixes(Structure({}, {}, groups, (), ()))
    kept = prefixes.selection(np.array([2, 4, 3])).kept
    assert [kept[group.name].tolist() for group in groups] == [[0, 1], [0, 1, 2, 3], [0, 2, 4]]


def test_the_memory_format_stays() -> None:
    model = small().to(memory_format=torch.channels_last)
    supernet = OFAPruner(model, INPUTS, quiet=True).ofa_model([0.5, 1], 4)
    weight = supernet.first[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()


def test_channels_shared_by_blocks_that_would_stray_keep_their_order() -> None:
    class Shared(nn.Module):
        """The channels of ``a`` meet those of ``b`` in one sum, and are read by blocks of both."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=4)
            self.c, self.head = nn.Conv2d(16, 16, 3, padding=1, groups=2), nn.Conv2d(16, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            x = (x + self.b(x)).relu()
            return self.head((x + self.c(x)).relu())

    model = Shared().eval()
    pruner = OFAPruner(model, INPUTS, quiet=True)
    supernet = pruner.ofa_model([0.5, 1], 1, auto_add_excludes=False)
    torch.testing.assert_close(outputs(supernet), outputs(model))
    _, setting = pruner.sample_subnet(supernet, "min")
    assert torch.equal(outputs(supernet), outputs(pruner.get_static_subnet(supernet, setting)[0]))


@pytest.mark.parametrize(
    ("axes", "stray"),
    [
        ({0: [1, 0, 3, 2]}, False),  # within the blocks
        ({1: [1, 0, 3, 2]}, False),
        ({0: [2, 3, 0, 1], 1: [2, 3, 0, 1]}, False),  # whole blocks with their columns
        ({0: [2, 1, 0, 3]}, True),
        ({1: [2, 1, 0, 3]}, True),
        ({0: [2, 3, 0, 1]}, True),
    ],
)
def test_columns_stay_with_the_rows_of_their_block(axes: dict[int, list[int]], stray: bool) -> None:
    info = TensorInfo("conv.weight", (4, 2, 1, 1), is_parameter=True, module="conv", blocks=2)
    assert _columns_stray(info, {axis: np.array(source) for axis, source in axes.items()}) == stray
