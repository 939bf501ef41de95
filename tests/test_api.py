"""The public face: what a traced graph says of a model, what it leaves out, which models are refused."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

import channelwise
from channelwise.errors import InvalidArgumentError, UnsupportedModelError
from channelwise.structure import Cause
from tests.networks.composites import WantsTargets
from tests.networks.expectations import why
from tests.networks.layers import Between
from tests.networks.resident import Resident, image
from tests.networks.unknown import CustomOperation


def test_a_training_path_that_wants_targets_is_noted() -> None:
    graph = channelwise.trace(WantsTargets(), image())
    assert any("train" in note and "targets should not be None" in note for note in graph.structure.notes)
    assert graph.groups


def test_frozen_reasons_name_operation_and_module() -> None:
    graph = channelwise.trace(CustomOperation(), image())
    assert why(graph, "second.0") == {(Cause.NO_RULE, "")}
    graph = channelwise.trace(nn.Sequential(Between(lambda x: x.sort(1)[0]), nn.Conv2d(4, 4, 1)), image())
    assert why(graph, "0.first") == {(Cause.FIXED, "0")}
    operations = {r.operation for f in graph.frozen for r in f.reasons if f.tensor == "0.first.weight"}
    assert "aten.sort.default" in operations


def test_outputs_are_frozen_with_a_reason() -> None:
    graph = channelwise.trace(Resident(), image())
    assert why(graph, "head") == {(Cause.OUTPUT, "")}


def test_printed_graph_names_groups_and_frozen_layers() -> None:
    text = str(channelwise.trace(CustomOperation(), image()))
    for part in ("first.0", "third.0", "second.0", "sorted_channels"):
        assert part in text


def _scripted() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.trace(Resident().eval(), image(), check_trace=False)


def _quantised() -> nn.Module:
    from torch.ao.nn import quantized

    return nn.Sequential(quantized.Linear(4, 4))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (_scripted, "[Ss]cript"),
        (_quantised, "[Qq]uanti"),
        (lambda: nn.Sequential(nn.LazyConv2d(8, 3)), "[Ll]azy"),
        (lambda: "not a model", "Module"),
        (lambda: Resident, "Module|class|instance"),
    ],
    ids=["scripted", "quantised", "lazy", "string", "class"],
)
def test_unsupported_models_are_refused(build: Any, message: str) -> None:
    with pytest.raises((UnsupportedModelError, InvalidArgumentError), match=message):
        channelwise.trace(build(), image())


def test_wrappers_are_removed() -> None:
    model = Resident()
    expected = channelwise.trace(model, image()).structure.digest()
    assert channelwise.trace(nn.DataParallel(model), image()).structure.digest() == expected
    assert channelwise.trace(torch.compile(model), image()).structure.digest() == expected


def test_a_model_without_parameters_has_no_groups() -> None:
    assert not channelwise.trace(nn.ReLU(), image()).groups


def test_excluded_layers_stay() -> None:
    graph = channelwise.trace(Resident(), image())
    kept = graph.select(sparsity=0.5, excludes=("body.0.0",)).counts()
    assert kept == {g.name: g.size if "body.0.0" in g.layers else g.size // 2 for g in graph.groups}
    assert {g.size for g in graph.groups if "body.0.0" in g.layers} == {8}


def test_excludes_that_match_nothing_are_an_error() -> None:
    with pytest.raises(InvalidArgumentError, match="nowhere"):
        channelwise.trace(Resident(), image()).select(sparsity=0.5, excludes=("nowhere.*",))
