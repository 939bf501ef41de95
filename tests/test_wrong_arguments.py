"""What a new user may give by mistake to the public functions is refused by name, and nothing wrong passes silently."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import channelwise as cw
from channelwise import recovery
from channelwise.errors import (
    ChannelwiseError,
    EvaluationError,
    InvalidArgumentError,
    TraceError,
    UnsupportedModelError,
)
from channelwise.methods import IterativePruningRunner, OFAPruner, OneStepPruningRunner
from channelwise.report.complexity import model_complexity
from tests.methods.small import INPUTS, closeness, net

GRAPH = cw.trace(net(), INPUTS)
HALF = GRAPH.select(macs=0.5)
SLIM = GRAPH.slim(HALF)
DOUBLE, FOUR_CHANNELS = INPUTS.double(), torch.zeros(2, 4, 8, 8)


@pytest.fixture(scope="module")
def supernet() -> tuple[OFAPruner, nn.Module]:
    pruner = OFAPruner(net(), INPUTS, quiet=True)
    return pruner, pruner.ofa_model([0.5, 1], 2, auto_add_excludes=False)


def raised(call: Callable[[], Any], error: type[ChannelwiseError], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: cw.trace(net(), INPUTS, verify="no"),
        lambda: cw.Channels(with_group_conv="no"),
        lambda: cw.Iterative(GRAPH, quiet="no"),
        lambda: cw.OneStep(GRAPH, quiet="no"),
        lambda: cw.Iterative(GRAPH).ana(cw.Evaluation(closeness), forced="no"),
        lambda: cw.OneStep(GRAPH).search(cw.Target(0.7), cw.Evaluation(closeness), forced="no"),
        lambda: cw.Repair([INPUTS], compensate="no"),
        lambda: IterativePruningRunner(net(), INPUTS, quiet="no"),
        lambda: OneStepPruningRunner(net(), INPUTS, quiet="no"),
        lambda: OFAPruner(net(), INPUTS, quiet="no"),
        lambda: OFAPruner(net(), INPUTS).ofa_model(auto_add_excludes="no"),
        lambda: OFAPruner(net(), INPUTS).ofa_model(save_search_space="no"),
        lambda: OFAPruner(net(), INPUTS).ofa_model(elastic_kernel="no"),
    ],
)
def test_a_flag_is_no_text(call: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    raised(call, InvalidArgumentError, r"='no': must be True or False")
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("value", [True, 1, np.bool_(True)])
def test_numbers_and_numpys_truth_values_are_flags(value: Any) -> None:
    assert cw.Channels(with_group_conv=value).with_group_conv


@pytest.mark.parametrize(
    "use",
    [
        lambda loader, **given: recovery.recalibrate(net(), loader, **given),
        lambda loader, **given: recovery.compensate(GRAPH.slim(HALF), GRAPH, HALF, loader, **given),
        lambda loader, **given: GRAPH.select(macs=0.5, ranking=cw.ranking.Taylor(torch.sum, loader, **given)),
        lambda loader, **given: cw.Images(loader, **given).grams(GRAPH),
    ],
    ids=["recalibrate", "compensate", "Taylor", "Images"],
)
@pytest.mark.parametrize(
    ("loader", "given", "message"),
    [
        ([DOUBLE], {}, r"Net raised RuntimeError on a batch of the loader \(\(2, 3, 8, 8\) float64 on cpu\)"),
        ([FOUR_CHANNELS], {}, r"\(2, 4, 8, 8\) float32 .* shape and the type of the inputs that were traced"),
        ([INPUTS], {"forward_fn": 3}, r"forward_fn must be a function called as forward_fn\(model, batch\), not int 3"),
        (
            [INPUTS],
            {"forward_fn": lambda model: 1},
            r"forward_fn raised TypeError .* called as forward_fn\(model, batch\)",
        ),
    ],
    ids=["type", "channels", "no function", "other function"],
)
def test_a_batch_that_does_not_fit_is_told_by_its_shape(
    use: Callable[..., Any], loader: Any, given: Any, message: str
) -> None:
    error = InvalidArgumentError if given.get("forward_fn") == 3 else EvaluationError
    raised(lambda: use(loader, **given), error, message)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GRAPH.select(macs=0.5, ranking=lambda group: 1), r"ranking .*TypeError .*ranking\(group, tensors\)"),
        (lambda: cw.Selection({3: [0]}), r"names of groups as its keys, not int 3"),
        (lambda: cw.Selection({"a": [[1], [2, 3]]}), r"selection of 'a' must be a list of channel indices, not list"),
        (lambda: cw.Selection({"a": INPUTS.long().to("meta")}), r"selection of 'a' must be a list .*, not a Tensor"),
        (lambda: HALF.check(net()), r"checked against graph\.structure, not a Net"),
        (lambda: recovery.compensate(SLIM, net(), HALF, [INPUTS]), r"takes \(slim, graph, selection, loader\)"),
        (lambda: recovery.compensate(SLIM.state_dict(), GRAPH, HALF, [INPUTS]), r"not a OrderedDict"),
        (lambda: recovery.compensate(net(), GRAPH, HALF, [INPUTS]), r"has shape .* expected"),
        (lambda: recovery.compensate(SLIM, GRAPH, None, [INPUTS]), r"A selection is needed"),
        (lambda: cw.fixer("Scale"), r"fixer takes classes of modules"),
        (lambda: cw.fixer(nn.Conv2d)(3), r"A fixer is a function"),
        (lambda: cw.fixer(nn.Tanh, attributes=5), r"attributes are the names .*, not int 5"),  # type: ignore[arg-type]
        (lambda: cw.fixer(nn.Tanh, attributes="width"), r"attributes are .*, not str 'width'"),  # type: ignore[arg-type]
        (lambda: cw.fixer(nn.Tanh, attributes=("width", 5)), r"attributes are .*, not tuple"),  # type: ignore[arg-type]
        (lambda: GRAPH.sparse(HALF).slim_state_dict("file.pt"), r"A state dict goes into a dict"),
        (lambda: list(cw.sandwich(net(), net())), r"pruner must be the OFAPruner that made the supernet, not a Net"),
    ],
)
def test_another_kind_of_thing_is_named(call: Callable[[], Any], message: str) -> None:
    raised(call, InvalidArgumentError, message)


def test_a_selection_of_json_is_checked_against_a_graph() -> None:
    assert cw.Selection.from_json(HALF.to_json(), GRAPH) == HALF


def test_a_supernet_is_not_traced(supernet: tuple[OFAPruner, nn.Module]) -> None:
    for make in (cw.trace, IterativePruningRunner, OneStepPruningRunner, OFAPruner):
        raised(lambda make=make: make(supernet[1], INPUTS), UnsupportedModelError, "is a supernet already")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"min_or_max_metric": ["max"]}, r"min_or_max_metric=\['max'\]"),
        ({"eval_args": DataLoader(TensorDataset(INPUTS))}, r"eval_args=\(loader,\)"),
        ({"forced": "no"}, r"forced='no'"),
    ],
)
def test_arguments_of_the_search_among_subnets(
    supernet: tuple[OFAPruner, nn.Module], given: dict[str, Any], message: str
) -> None:
    pruner, model = supernet
    raised(lambda: pruner.run_evolutionary_search(model, eval_fn=closeness, **given), InvalidArgumentError, message)


def test_numbers_of_numpy_are_numbers_to_a_supernet(supernet: tuple[OFAPruner, nn.Module], tmp_path: Path) -> None:
    pruner, model = supernet
    setting = pruner.sample_subnet(model, "random", seed=np.int64(3))[1]
    assert setting == pruner.sample_subnet(model, "random", seed=3)[1]
    plain = [{key: np.int64(v) if isinstance(v, int) else v for key, v in entry.items()} for entry in setting]
    pruner.save_subnet_config(plain, tmp_path / "setting.json")
    assert pruner.load_subnet_config(tmp_path / "setting.json") == setting
    found = pruner.run_evolutionary_search(
        model, eval_fn=closeness, min_flops=np.float32(0.02), parent_popu_size=1, iteration=0,
        storage=tmp_path / "Net.ofa",
    )  # fmt: skip
    assert found
    for seed in ("3", 1.5, True):
        raised(lambda seed=seed: pruner.sample_subnet(model, "random", seed=seed), InvalidArgumentError, "whole number")
    raised(lambda: pruner.save_subnet_config({"a": {1, 2}}, tmp_path / "x"), InvalidArgumentError, "JSON")


def test_costs_of_a_model_that_does_not_run_are_refused_as_in_a_trace() -> None:
    raised(lambda: model_complexity(net(), FOUR_CHANNELS), TraceError, r"Net raised RuntimeError")
    raised(lambda: model_complexity(net(), {"y": INPUTS}), TraceError, r"A dict gives keyword arguments, here y")


@pytest.mark.parametrize("change", ["gone", "resized"])
@pytest.mark.parametrize("use", ["select", "slim", "sparse"])
def test_a_layer_that_changed_since_the_trace_is_named_with_the_way_out(change: str, use: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
    graph = cw.trace(model, torch.zeros(2, 3, 8, 8))
    selection = graph.select(sparsity=0.5)
    model[2] = nn.Identity() if change == "gone" else nn.Conv2d(8, 6, 3)
    calls = {"select": lambda: graph.select(sparsity=0.5), "slim": lambda: graph.slim(selection)}
    call = calls.get(use, lambda: graph.sparse(selection))
    raised(call, InvalidArgumentError, r"'2\.(weight|bias)'.* when the model was traced.* trace the model again")
