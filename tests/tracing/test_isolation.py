"""Tracing leaves the user's model, inputs and process as they were."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import channelwise
from channelwise.errors import ChannelwiseError
from tests.networks.composites import AuxiliaryHead
from tests.networks.layers import Between
from tests.networks.resident import Resident, image, nothing_changes, resident


def traced(model: nn.Module, x: Tensor | None = None) -> tuple[Any, nn.Module]:
    graph = channelwise.trace(model, image() if x is None else x)
    return graph, graph.slim(graph.select(sparsity=0.5))


def test_tracing_changes_nothing() -> None:
    model, _ = resident()
    x = image()
    with nothing_changes(model):
        channelwise.trace(model, x)
    assert x.grad is None


def test_slimming_and_counting_change_nothing() -> None:
    model, _ = resident()
    graph = channelwise.trace(model, image())
    with nothing_changes(model):
        selection = graph.select(macs=0.5)
        graph.slim(selection)
        graph.sparse(selection)
        graph.macs(selection)
        str(graph)


def test_a_failing_forward_changes_nothing() -> None:
    model, _ = resident()
    model.fails = True
    x = image()
    with nothing_changes(model), pytest.raises(ChannelwiseError, match="in the middle of the user's forward"):
        channelwise.trace(model, x)


class CountsItself(nn.Module):
    """Writes into its parameters at every call, and has a number that keeps `hidden` from being pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.hidden, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)
        self.calls = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.calls.add_(1)
            self.stem.weight.mul_(0.9)
        return self.head(self.hidden(self.stem(x)).reshape(x.shape[0], 8, *x.shape[2:])) + self.calls


def test_a_model_that_writes_into_its_parameters_keeps_them() -> None:
    model, x = CountsItself(), image()
    with nothing_changes(model):
        graph = channelwise.trace(model, x)
    assert [group.name for group in graph.groups] == ["stem"]


def test_inputs_are_not_written() -> None:
    model = Between(nn.ReLU(inplace=True))
    model.register_forward_pre_hook(lambda module, args: args[0].mul_(2))
    x = image()
    before = x.clone()
    channelwise.trace(model, x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("container", [dict, OrderedDict, UserDict], ids=lambda kind: kind.__name__)
def test_inputs_in_a_dict_of_any_class_are_not_written(container: Any) -> None:
    class Doubles(Resident):
        def forward(self, batch: Any) -> Tensor:
            return super().forward(batch["x"].mul_(2))

    x = image()
    before = x.clone()
    channelwise.trace(Doubles(), (container(x=x),))
    assert torch.equal(x, before)


def test_hooks_of_the_user_still_run_afterwards() -> None:
    model, log = resident()
    channelwise.trace(model, image())
    log.clear()
    model(image()).square().mean().backward()
    assert log == ["forward", "pre", "backward"]


def test_tracing_twice_gives_the_same_groups() -> None:
    model, _ = resident()
    x = image()
    first, second = channelwise.trace(model, x), channelwise.trace(model, x)
    assert [(g.name, g.size) for g in first.groups] == [(g.name, g.size) for g in second.groups]
    assert first.structure.digest() == second.structure.digest()


def test_tracing_works_under_no_grad_and_inference_mode() -> None:
    model, x = Resident(), image()
    expected = channelwise.trace(model, x).structure.digest()
    with torch.no_grad():
        assert channelwise.trace(model, x).structure.digest() == expected
    with torch.inference_mode():
        assert channelwise.trace(model, x).structure.digest() == expected


def test_training_flags_do_not_change_the_result() -> None:
    x = image()
    digests = {channelwise.trace(AuxiliaryHead().train(mode), x).structure.digest() for mode in (True, False)}
    assert len(digests) == 1
