"""Keyword names, import paths and files of other releases of the Vitis AI Optimizer, as far as programs use them."""

from __future__ import annotations

import importlib
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import channelwise as cw
import pytorch_nndct
from channelwise.errors import ChannelwiseError, InvalidArgumentError, ResultsFileError, UnreachableTargetError
from channelwise.execution import devices
from tests.methods.small import INPUTS, closeness, net


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def pruner() -> pytorch_nndct.OFAPruner:
    return pytorch_nndct.OFAPruner(net(), INPUTS, quiet=True)


@pytest.fixture
def supernet(pruner: pytorch_nndct.OFAPruner) -> nn.Module:
    return pruner.ofa_model([0.5, 1], 2, auto_add_excludes=False)


def iterative(mode: str = "sparse", **target: Any) -> tuple[Any, nn.Module]:
    runner = pytorch_nndct.IterativePruningRunner(net(), input_signature=INPUTS, quiet=True)
    runner.ana(closeness)
    return runner, runner.prune(mode=mode, **(target or {"removal_ratio": 0.3}))


# Keywords


def test_runners_take_their_inputs_as_input_signature() -> None:
    pytorch_nndct.IterativePruningRunner(net(), input_signature=INPUTS)
    pytorch_nndct.OneStepPruningRunner(net(), input_signature=INPUTS)
    pytorch_nndct.OFAPruner(net(), input_signature=INPUTS)
    pytorch_nndct.get_pruning_runner(net(), input_signature=INPUTS, method="one_step")
    with pytest.raises(InvalidArgumentError, match="inputs and input_signature are two names"):
        pytorch_nndct.IterativePruningRunner(net(), inputs=INPUTS, input_signature=INPUTS)


def test_subnets_are_sampled_and_taken_out_by_other_keywords(
    pruner: pytorch_nndct.OFAPruner, supernet: nn.Module
) -> None:
    model, setting = pruner.sample_subnet(model=supernet, kind="min")
    static, found, flops, params = pruner.get_static_subnet(dynamic_subnet=model, dynamic_subnet_setting=setting)
    assert found == setting
    assert (static.first.out_channels, params) == (4, sum(p.numel() for p in static.parameters()) / 1e6)
    assert pruner.get_static_subnet(dynamic_subnet=supernet)[1:] == (setting, flops, params)
    full = pruner.sample_subnet(supernet, "max")[1]
    assert pruner.get_static_subnet(nn.DataParallel(supernet), None)[1] == full != setting


def test_the_active_subnet_is_that_of_the_copy_that_is_asked(
    pruner: pytorch_nndct.OFAPruner, supernet: nn.Module
) -> None:
    import copy

    other = copy.deepcopy(supernet)
    smallest = pruner.sample_subnet(other, "min")[1]
    assert pruner.get_static_subnet(other)[1] == smallest
    assert pruner.get_static_subnet(supernet)[0].first.out_channels == 8
    static = pruner.get_static_subnet(other)[0]
    assert not [name for name in vars(static) if name.startswith("_channelwise")]


def test_a_search_names_its_subnets_as_the_original(pruner: pytorch_nndct.OFAPruner, supernet: nn.Module) -> None:
    front = pruner.run_evolutionary_search(
        model=supernet,
        eval_fn=closeness,
        flops_step=0.001,
        parent_popu_size=3,
        iteration=2,
        mutate_size=2,
        crossover_size=1,
    )
    assert {subnet["mode"] for subnet in front.values()} == {"evaluate"}
    names = {subnet["net_id"] for subnet in front.values()}
    possible = {f"net_evo_0_random_{n}" for n in range(3)}
    possible |= {f"net_evo_{g}_{kind}" for g in (1, 2) for kind in ("mutate_0", "mutate_1", "crossover_0")}
    assert names <= possible
    assert any(name.startswith("net_evo_0_random") for name in names)


def test_random_subnets_within_a_range(pruner: pytorch_nndct.OFAPruner, supernet: nn.Module) -> None:
    assert isinstance(pruner.sample_random_subnet(supernet)[1], list)
    full = pruner.get_static_subnet(supernet, pruner.sample_subnet(supernet, "max")[1])[2]
    macs, setting = pruner.sample_random_subnet_within_range(model=supernet, min_macs=0.5 * full, max_macs=0.8 * full)
    assert 0.5 * full <= macs <= 0.8 * full
    assert pruner.get_static_subnet(supernet)[1:3] == (setting, macs)
    with pytest.raises(UnreachableTargetError, match="min_macs="):
        pruner.sample_random_subnet_within_range(supernet, 2 * full, 3 * full)
    with pytest.raises(InvalidArgumentError, match="min_macs='small'"):
        pruner.sample_random_subnet_within_range(supernet, "small", 3)


def test_a_setting_can_be_checked_saved_and_loaded(
    pruner: pytorch_nndct.OFAPruner, supernet: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    setting = pruner.sample_subnet(supernet, "min")[1]
    assert pruner.check_dynamic_subnet_setting(setting) is True
    wrong = json.loads(json.dumps(setting))
    wrong[0]["active_out_channel"] = 3
    assert pruner.check_dynamic_subnet_setting(wrong) is False
    assert "active_out_channel=3" in caplog.text
    pruner.save_subnet_config(setting, "setting.txt")
    assert pruner.load_subnet_config("setting.txt") == setting
    Path("bare.txt").write_text(json.dumps(setting))
    assert pruner.load_subnet_config("bare.txt") == setting
    Path("bare.txt").write_text(json.dumps(wrong))
    with pytest.raises(ResultsFileError, match=r"bare\.txt does not fit this supernet"):
        pruner.load_subnet_config("bare.txt")


def test_a_pareto_file_that_is_a_plain_dict_loads(pruner: pytorch_nndct.OFAPruner, supernet: nn.Module) -> None:
    front = {"230": {"acc1": 70.0, "subnet_setting": pruner.sample_subnet(supernet, "min")[1]}}
    Path("pareto.txt").write_text(json.dumps(front))
    assert pruner.load_subnet_config("pareto.txt") == front
    for content in ("{}", "[]", "3", '{"230": {"acc1": 70.0}}'):
        Path("pareto.txt").write_text(content)
        with pytest.raises(ResultsFileError, match=r"pareto\.txt"):
            pruner.load_subnet_config("pareto.txt")


# State dicts


@pytest.mark.parametrize(("mode", "method"), [("sparse", "slim_state_dict"), ("slim", "sparse_state_dict")])
def test_state_dicts_take_pytorchs_arguments(mode: str, method: str) -> None:
    model = iterative(mode)[1]
    plain = getattr(model, method)()
    destination: Any = OrderedDict(other=torch.zeros(1))
    found = getattr(model, method)(destination, "net.", True)
    assert found is destination
    assert list(found) == ["other", *(f"net.{name}" for name in plain)]
    assert found["net.first.weight"].requires_grad
    assert not plain["first.weight"].requires_grad
    assert found._metadata["net.first"] == plain._metadata["first"]
    assert found._metadata["net"] == plain._metadata[""]
    named = getattr(model, method)(destination=None, prefix="net.", keep_vars=False)
    assert list(named) == [f"net.{name}" for name in plain]


def test_slim_weights_are_loaded_by_the_modules_that_programs_import() -> None:
    from pytorch_nndct.utils import module_util, slim

    state = iterative()[1].slim_state_dict()
    first = slim.load_state_dict(net(), state)
    second = module_util.slim_model_from_state_dict(model=net(), state_dict=state)
    assert first.second.out_channels == state["second.weight"].shape[0] < 12
    torch.testing.assert_close(first(INPUTS), second(INPUTS))


# Import paths


def test_the_runners_and_dynamic_layers_have_modules_of_their_own(
    pruner: pytorch_nndct.OFAPruner, supernet: nn.Module
) -> None:
    pruning = importlib.import_module("pytorch_nndct.pruning")
    assert pruning.OFAPruner is pytorch_nndct.OFAPruner
    assert pruning.IterativePruningRunner is pytorch_nndct.IterativePruningRunner
    assert isinstance(supernet.second, pytorch_nndct.nn.DynamicConv2d)
    assert isinstance(supernet.norm, importlib.import_module("pytorch_nndct.nn").DynamicBatchNorm2d)
    assert pytorch_nndct.__version__ == cw.__version__


def test_model_complexity_is_that_of_the_trace(capsys: pytest.CaptureFixture[str]) -> None:
    from pytorch_nndct.utils import profiler

    model = net().train()
    graph = cw.trace(model, INPUTS)
    assert profiler.model_complexity(model, INPUTS) == (graph.macs(), graph.params())
    assert model.training
    assert profiler.model_complexity(model, (INPUTS,), return_flops=True)[0] == 2 * graph.macs()
    assert capsys.readouterr().out == ""
    assert profiler.model_complexity(model, INPUTS, readable=True, verbose=True) == ("70.67 k", "1.157 k")
    assert "Net.second" in capsys.readouterr().out


@pytest.mark.parametrize(
    "program",
    [
        "from pytorch_nndct import SparsePruner",
        "from pytorch_nndct.pruning import SparsePruner",
        "import pytorch_nndct; pytorch_nndct.SparsePruner",
        "from pytorch_nndct import torch_quantizer",
        "from pytorch_nndct.apis import torch_quantizer",
        "from pytorch_nndct import QatProcessor",
        "import nndct_shared",
        "from nndct_shared.pruning import errors",
        "import pytorch_nndct.expanding",
        "from pytorch_nndct.expanding.expander import ChannelExpander",
        "from pytorch_nndct import expanding",
    ],
)
def test_what_is_not_carried_over_says_so_and_what_to_use(program: str) -> None:
    with pytest.raises(ImportError, match=r"is not carried over: .* .*\.$") as caught:
        exec(program)
    assert isinstance(caught.value, ChannelwiseError)


def test_transform_is_not_carried_over() -> None:
    for runner in (pytorch_nndct.IterativePruningRunner, pytorch_nndct.OneStepPruningRunner):
        with pytest.raises(InvalidArgumentError, match=r"not carried over.*prune\(spec_path=..., mode='slim'\)"):
            runner(net(), INPUTS).transform("Net_ratio_0.3.spec")


# Files that nobody asks for


def test_iterative_pruning_leaves_its_info() -> None:
    runner, model = iterative()
    written = json.loads(Path(".vai/Net_ratio_0.3_pruning_info.json").read_text())
    assert written["layers"] == model._pruning_info["layers"]
    assert written["layers"]["first"]["sizes"]["out_channels"]["before"] == 8
    runner.generate_pruning_info("mine.json", model._pruning_info)
    assert json.loads(Path("mine.json").read_text()) == written
    with pytest.raises(InvalidArgumentError, match=r"model\._pruning_info of a pruned model, not"):
        runner.generate_pruning_info("mine.json", {"first": 3})
    runner.prune(removal_ratio=0.4, pruning_info_path="asked.json")
    assert Path("asked.json").exists()
    assert not Path(".vai/Net_ratio_0.4_pruning_info.json").exists()


def test_one_step_pruning_leaves_the_spec_of_the_best_and_its_info() -> None:
    runner = pytorch_nndct.OneStepPruningRunner(net(), INPUTS, quiet=True)
    runner.search(num_subnet=3, removal_ratio=0.3, eval_fn=closeness)
    best = runner.prune(mode="slim", removal_ratio=0.3)
    runner.prune(removal_ratio=0.3, index=0)
    found = {path.name for path in Path(".vai").iterdir()}
    assert found >= {"Net_ratio_0.3_best.spec", "Net_ratio_0.3_0.spec", "Net_ratio_0.3_pruning_info.json"}
    assert best._pruning_info["layers"]["first"]["sizes"]["out_channels"]["after"] == best.first.out_channels
    again = pytorch_nndct.IterativePruningRunner(net(), INPUTS, quiet=True)
    same = again.prune(spec_path=".vai/Net_ratio_0.3_best.spec", mode="slim")
    assert same.second.out_channels == best.second.out_channels


def test_a_folder_that_cannot_be_written_does_not_hold_up_pruning(caplog: pytest.LogCaptureFixture) -> None:
    runner = pytorch_nndct.OneStepPruningRunner(net(), INPUTS, quiet=True)
    runner.search(num_subnet=2, removal_ratio=0.3, eval_fn=closeness)
    Path(".vai/Net_ratio_0.3_pruning_info.json").mkdir()
    assert runner.prune().first.out_channels <= 8
    assert caplog.text.count("The pruned model is complete without it") == 1


# The note about GPUs


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows what happens without CUDA")
def test_the_note_about_gpus_without_cuda_is_seen_once(caplog: pytest.LogCaptureFixture) -> None:
    devices._say_once.cache_clear()
    runner = pytorch_nndct.OneStepPruningRunner(net(), INPUTS, quiet=True)
    for ratio in (0.2, 0.3):
        runner.search(gpus=["0"], num_subnet=1, removal_ratio=ratio, eval_fn=closeness)
    pytorch_nndct.IterativePruningRunner(net(), INPUTS, quiet=True).ana(closeness, gpus=["0"])
    notes = [record for record in caplog.records if "CUDA" in record.getMessage()]
    assert [note.levelname for note in notes] == ["WARNING"]
    assert "gpus=['0']: there is no CUDA device here" in notes[0].getMessage()
