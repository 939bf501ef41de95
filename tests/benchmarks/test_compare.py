"""The comparison of tools: a right tool is exact, a wrong one differs, and where nobody can tell it says so."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from benchmarks.coverage import compare


@dataclass
class Made:
    """A model of the sweep that a test makes."""

    model: nn.Module
    is_detector: bool = False

    def build(self):
        return self.model.eval()

    def arguments(self, pixels=None):
        torch.manual_seed(0)
        return (torch.randn(1, 3, 8, 8),)


def halving(second):
    """A tool that keeps channels 0 and 1 of the first of two convolutions, and ``second`` of what the other sees."""

    def tool(model, inputs):
        first, last = [m for m in model if isinstance(m, nn.Conv2d)]
        norm = [m for m in model if isinstance(m, nn.GroupNorm)]
        yield
        first.weight = nn.Parameter(first.weight.detach()[:2])
        first.bias = nn.Parameter(first.bias.detach()[:2])
        for m in norm:
            m.num_channels = 2
            m.weight, m.bias = nn.Parameter(m.weight.detach()[:2]), nn.Parameter(m.bias.detach()[:2])
        last.weight = nn.Parameter(last.weight.detach()[:, second])
        return model

    return tool


def result(monkeypatch, tool, *between):
    monkeypatch.setitem(compare.TOOLS, "tool", tool)
    monkeypatch.setattr(compare, "_warm_up", lambda tool: None)
    return compare.compare(Made(nn.Sequential(nn.Conv2d(3, 4, 3), *between, nn.Conv2d(4, 5, 3))), "tool")


def test_the_same_channels_removed_in_both_layers_are_exact(monkeypatch):
    found = result(monkeypatch, halving([0, 1]))
    assert (found["error"], found["exact"]) == ("", "yes")
    assert found["macs_left"] == pytest.approx(0.5)
    assert found["changed"] > 0.01


def test_other_channels_removed_in_the_second_layer_differ(monkeypatch):
    found = result(monkeypatch, halving([0, 2]), nn.ReLU())
    assert (found["error"], found["exact"]) == ("", "no")
    assert found["difference"] > 0.01


def test_behind_a_norm_over_channels_nobody_can_tell(monkeypatch):
    found = result(monkeypatch, halving([0, 1]), nn.GroupNorm(1, 4))
    assert (found["error"], found["exact"], found["why"]) == ("", "n/a", "group_norm")


def test_a_tool_that_raises_is_a_row(monkeypatch):
    def tool(model, inputs):
        raise RuntimeError("no")
        yield

    found = result(monkeypatch, tool)
    assert (found["stage"], found["error"]) == ("prune", "RuntimeError: no")


def test_a_model_with_fewer_outputs_is_a_failure(monkeypatch):
    def tool(model, inputs):
        yield
        model[1].weight, model[1].bias = (nn.Parameter(t.detach()[:2]) for t in (model[1].weight, model[1].bias))
        return model

    found = result(monkeypatch, tool)
    assert found["error"] == "ValueError: an output of shape (1, 5, 4, 4) became (1, 2, 4, 4)"


def test_values_that_a_tool_computes_cannot_be_told(monkeypatch):
    def tool(model, inputs):
        yield from halving([0, 1])(model, inputs)
        model[1].weight.data *= 0.5
        return model

    assert result(monkeypatch, tool)["why"] == "1.weight was computed, not selected"
