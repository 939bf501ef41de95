"""Numbers in the attributes of users' modules follow the channels where that is what the code needs."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

import channelwise as cw
from channelwise.structure import Structure
from channelwise.surgery import sparse_state_dict
from channelwise.tracing.provenance import Traced, trace_numbers
from tests.networks import NETWORKS, Network, of_family
from tests.networks.expectations import check_network
from tests.networks.numbers import (
    DualPathNet,
    PartialConvolutions,
    SelectiveKernelNet,
    SelectiveKernels,
    SharedNumbers,
    TupleOfSizes,
)

IMAGES = torch.randn(2, 3, 8, 8)


@pytest.mark.parametrize("network", of_family("numbers"))
def test_removing_equals_zeroing(network: Network) -> None:
    check_network(network)


def numbers(structure: Structure) -> set[tuple[str, str]]:
    return {(number.module, number.attribute) for number in structure.numbers}


def test_only_numbers_that_are_needed_follow() -> None:
    graph = cw.trace(SelectiveKernelNet(), IMAGES)
    assert numbers(graph.structure) == {("block", "in_channels")}
    assert numbers(cw.trace(NETWORKS["NumberOfTwoMeanings"].model(), IMAGES).structure) == set()


class NormWithItsOwnNumber(nn.LayerNorm):
    """A layer of torch with a number that torch knows nothing of."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.width = width


def test_numbers_that_torch_keeps_are_none_to_follow() -> None:
    model = nn.Sequential(NormWithItsOwnNumber(8))
    trace_numbers(model, [], nn.Module())
    assert {name for name, value in model[0].__dict__.items() if isinstance(value, Traced)} == {"width"}


def test_the_slim_model_has_other_numbers_and_the_users_model_the_same() -> None:
    model = PartialConvolutions()
    graph = cw.trace(model, IMAGES)
    slim = graph.slim(graph.select(sparsity=0.5))
    assert [block.touched for block in slim.mix] == [2, 2]
    assert [block.untouched for block in slim.mix] == [6, 6]
    assert [block.touched for block in model.mix] == [4, 4]


def test_numbers_in_tuples_and_lists_follow(tmp_path: Path) -> None:
    model = TupleOfSizes()
    graph = cw.trace(model, IMAGES)
    slim = graph.slim(graph.select(sparsity=0.5)).eval()
    assert (slim.unequal.sizes, slim.equal.sizes, slim.view.shape) == ((5, 2, 2, 2), (2, 2, 2, 2), [7, 1, 1])
    assert (model.unequal.sizes, model.equal.sizes, model.view.shape) == ((10, 4, 4, 4), (4, 4, 4, 4), [14, 1, 1])
    cw.save(slim, tmp_path / "slim.safetensors")
    for source in (tmp_path / "slim.safetensors", slim.state_dict()):
        loaded = cw.load(TupleOfSizes(), source).eval()
        assert (loaded.unequal.sizes, loaded.view.shape) == (slim.unequal.sizes, slim.view.shape)
        assert torch.equal(loaded(IMAGES), slim(IMAGES))


def test_widths_in_one_number_go_together() -> None:
    graph = cw.trace(SharedNumbers(), IMAGES)
    assert {number for _, number in numbers(graph.structure)} == {"width", "inner", "touched"}
    assert {f.tensor for f in graph.structure.frozen if f.role == "output"} == {"head.weight"}


def test_numbers_are_saved_loaded_and_saved_again(tmp_path: Path) -> None:
    graph = cw.trace(DualPathNet(), IMAGES)
    slim = graph.slim(graph.select(sparsity=0.5)).eval()
    cw.save(slim, tmp_path / "one.safetensors")
    loaded = cw.load(DualPathNet(), tmp_path / "one.safetensors").eval()
    assert loaded.block.added == slim.block.added < 10
    assert torch.equal(loaded(IMAGES), slim(IMAGES))
    cw.save(loaded, tmp_path / "two.safetensors")
    again = cw.load(DualPathNet(), tmp_path / "two.safetensors").eval()
    assert torch.equal(again(IMAGES), slim(IMAGES))


def test_a_slim_state_dict_of_a_sparse_model_brings_the_numbers() -> None:
    graph = cw.trace(DualPathNet(), IMAGES)
    sparse = graph.sparse(graph.select(sparsity=0.5)).eval()
    slim = cw.load(DualPathNet(), sparse.slim_state_dict()).eval()
    assert slim.block.added < 10
    assert torch.allclose(slim(IMAGES), sparse(IMAGES), atol=1e-6)


def test_a_slim_models_own_state_dict_brings_the_numbers(tmp_path: Path) -> None:
    graph = cw.trace(DualPathNet(), IMAGES)
    selection = graph.select(sparsity=0.5)
    slim = graph.slim(selection).eval()
    torch.save(slim.state_dict(), tmp_path / "slim.pt")
    loaded = cw.load(DualPathNet(), torch.load(tmp_path / "slim.pt", weights_only=True)).eval()
    assert loaded.block.added == slim.block.added
    assert torch.equal(loaded(IMAGES), slim(IMAGES))
    dense = DualPathNet()
    dense.load_state_dict(slim_model_as_sparse(slim, graph, selection))
    assert dense.block.added == 10


def slim_model_as_sparse(slim: nn.Module, graph: cw.ChannelGraph, selection: cw.Selection) -> dict[str, object]:
    return sparse_state_dict(slim.state_dict(), graph.structure, selection)


def test_without_metadata_the_structure_is_asked_for_and_brings_the_numbers(caplog: pytest.LogCaptureFixture) -> None:
    graph = cw.trace(DualPathNet(), IMAGES)
    slim = graph.slim(graph.select(sparsity=0.5)).eval()
    cw.load(DualPathNet(), dict(slim.state_dict()))
    assert "added of 'block' stays as it is" in caplog.text
    loaded = cw.load(DualPathNet(), dict(slim.state_dict()), structure=graph.structure).eval()
    assert torch.equal(loaded(IMAGES), slim(IMAGES))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_of_a_slim_model_are_pruned_further(duplicate: object) -> None:
    graph = cw.trace(SelectiveKernelNet(), IMAGES)
    slim = duplicate(graph.slim(graph.select(sparsity=0.5)))  # type: ignore[operator]
    assert isinstance(slim.block, SelectiveKernels)
    assert slim.block.in_channels == 8
    graph = cw.trace(slim, IMAGES)
    assert graph.slim(graph.select(sparsity=0.5)).block.in_channels == 4


def test_a_supernets_tuples_follow_its_subnets() -> None:
    pruner = cw.OFAPruner(TupleOfSizes(), IMAGES)
    supernet = pruner.ofa_model([0.5, 1], 2, auto_add_excludes=False).eval()
    for mode, sizes in (("max", (10, 4, 4, 4)), ("min", (6, 2, 2, 2))):
        _, setting = pruner.sample_subnet(supernet, mode)
        assert supernet.unequal.sizes == sizes
        static = pruner.get_static_subnet(supernet, setting)[0].eval()
        assert static.unequal.sizes == sizes
        assert torch.equal(static(IMAGES), supernet(IMAGES))


def test_a_supernets_numbers_follow_its_subnets() -> None:
    pruner = cw.OFAPruner(PartialConvolutions(), IMAGES)
    supernet = pruner.ofa_model([0.5, 1], 2, auto_add_excludes=False).eval()
    for mode, touched in (("max", 4), ("min", 2), ("max", 4)):
        _, setting = pruner.sample_subnet(supernet, mode)
        assert [block.touched for block in supernet.mix] == [touched, touched]
        static = pruner.get_static_subnet(supernet, setting)[0].eval()
        assert [block.touched for block in static.mix] == [touched, touched]
        assert torch.equal(static(IMAGES), supernet(IMAGES))
