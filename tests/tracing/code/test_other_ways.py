"""Numbers that only another way through a module reads (`forward_split` of an exporter) follow the channels, too."""

from __future__ import annotations

import copy
import pickle
import pickletools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import channelwise as cw
from tests.networks import Network, of_family
from tests.networks.expectations import check_network
from tests.networks.other_ways import Halves, TwoBlocksOfHalves

IMAGES = torch.randn(2, 3, 8, 8)


@pytest.fixture
def graph() -> cw.ChannelGraph:
    return cw.trace(TwoBlocksOfHalves(), IMAGES)


def gone_the_other_way(model: nn.Module) -> Any:
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, Halves):
            module.forward = module.forward_split
    return model(IMAGES)


@pytest.mark.parametrize("network", of_family("other ways"))
def test_removing_equals_zeroing(network: Network) -> None:
    check_network(network)


@pytest.mark.parametrize("target", [{"sparsity": 0.5}, {"sparsity": {"one.enter": 0.25}}, {"macs": 0.6}])
def test_both_ways_give_the_same_in_a_slim_model(graph: cw.ChannelGraph, target: dict[str, Any]) -> None:
    slim = graph.slim(graph.select(**target)).eval()
    assert slim.one.width < 8
    assert torch.allclose(gone_the_other_way(slim), slim(IMAGES), atol=1e-6)


def test_a_way_that_gives_something_else_leaves_its_numbers_alone(graph: cw.ChannelGraph) -> None:
    assert {(n.module, n.attribute) for n in graph.structure.numbers} == {("one", "width"), ("two", "width")}


def test_files_and_the_structure_bring_these_numbers(graph: cw.ChannelGraph, tmp_path: Path) -> None:
    slim = graph.slim(graph.select(sparsity=0.5)).eval()
    cw.save(slim, tmp_path / "slim.safetensors")
    loaded = cw.load(TwoBlocksOfHalves(), tmp_path / "slim.safetensors").eval()
    assert torch.equal(gone_the_other_way(loaded), gone_the_other_way(slim))
    loaded = cw.load(TwoBlocksOfHalves(), slim.state_dict(), structure=graph.structure).eval()
    assert torch.equal(gone_the_other_way(loaded), gone_the_other_way(slim))


def test_a_state_dict_alone_says_that_they_stay(graph: cw.ChannelGraph, caplog: pytest.LogCaptureFixture) -> None:
    slim = graph.slim(graph.select(sparsity=0.5)).eval()
    loaded = cw.load(TwoBlocksOfHalves(), slim.state_dict()).eval()
    assert torch.equal(loaded(IMAGES), slim(IMAGES))
    assert "width of 'one' stays as it is" in caplog.text


def test_a_pickle_does_not_need_channelwise_for_them(graph: cw.ChannelGraph) -> None:
    pickled = pickle.dumps(graph.slim(graph.select(sparsity=0.5)))
    assert not [word for _, word, _ in pickletools.genops(pickled) if str(word).startswith("channelwise")]
