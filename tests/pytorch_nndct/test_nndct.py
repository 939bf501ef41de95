"""Programs written for the Vitis AI Optimizer find the names and signatures they use."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pytorch_nndct
from channelwise.errors import InvalidArgumentError
from tests.methods.small import INPUTS, closeness, net


def test_importing_does_not_load_torch() -> None:
    code = "import sys, pytorch_nndct, channelwise; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_exported_names_exist() -> None:
    assert sorted(pytorch_nndct.__all__) == sorted(dir(pytorch_nndct))
    for name in set(pytorch_nndct.__all__) - {"__version__"}:
        assert callable(getattr(pytorch_nndct, name))


def positional(function: object) -> dict[str, object]:
    parameters = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
    return {p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "self"}


def test_arguments_of_once_for_all_have_the_original_names_and_order() -> None:
    pruner = pytorch_nndct.OFAPruner
    assert list(positional(pruner.ofa_model).items()) == [
        ("expand_ratio", (0.5, 0.75, 1)),
        ("channel_divisible", 8),
        ("excludes", None),
        ("auto_add_excludes", True),
        ("save_search_space", False),
    ]
    assert list(positional(pruner.sample_subnet)) == ["ofa_model", "mode"]
    assert list(positional(pruner.get_static_subnet)) == ["ofa_model", "setting"]
    search = positional(pruner.run_evolutionary_search)
    assert list(search)[:10] == [
        "ofa_model", "calibration_fn", "calib_args", "eval_fn", "eval_args", "evaluation_metric", "min_or_max_metric",
        "min_flops", "max_flops", "flops_step",
    ]  # fmt: skip
    assert list(search.items())[10:] == [
        ("parent_popu_size", 16),
        ("iteration", 10),
        ("mutate_size", 8),
        ("mutate_prob", 0.2),
        ("crossover_size", 4),
    ]


def test_arguments_have_the_original_names_order_and_defaults() -> None:
    empty = inspect.Parameter.empty
    runner = pytorch_nndct.IterativePruningRunner
    assert positional(pytorch_nndct.get_pruning_runner) == {"model": empty, "inputs": empty, "method": empty}
    assert positional(runner) == {"model": empty, "inputs": empty}
    assert list(positional(runner.ana).items()) == [
        ("eval_fn", empty),
        ("args", ()),
        ("gpus", None),
        ("excludes", None),
        ("forced", False),
        ("with_group_conv", False),
    ]
    assert list(positional(runner.prune).items()) == [
        ("removal_ratio", None),
        ("threshold", None),
        ("spec_path", None),
        ("excludes", None),
        ("mode", "sparse"),
        ("pruning_info_path", None),
        ("channel_divisible", 2),
    ]


def test_a_users_program_runs_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runner = pytorch_nndct.get_pruning_runner(net(), INPUTS, "iterative")
    runner.ana(lambda model, scale: scale * closeness(model), (2,), ["0"] if not torch.cuda.is_available() else None)
    sparse = runner.prune(removal_ratio=0.3)
    torch.save(sparse.state_dict(), "sparse.pth")
    model = net()
    model.load_state_dict(torch.load("sparse.pth"))
    slim = pytorch_nndct.IterativePruningRunner(model, (INPUTS,)).prune(0.5, mode="slim")
    assert slim.first.out_channels <= 8
    results = [f"Net_ratio_{ratio}{kind}" for ratio in (0.3, 0.5) for kind in (".spec", "_pruning_info.json")]
    assert sorted(p.name for p in Path(".vai").iterdir()) == ["Net.sens", *results]


def test_one_step_arguments_have_the_original_names_order_and_defaults() -> None:
    empty = inspect.Parameter.empty
    runner = pytorch_nndct.OneStepPruningRunner
    assert positional(runner) == {"model": empty, "inputs": empty}
    found = {name: list(value) if name == "excludes" else value for name, value in positional(runner.search).items()}
    assert list(found.items()) == [
        ("gpus", ["0"]),
        ("calibration_fn", None),
        ("calib_args", ()),
        ("num_subnet", 200),
        ("removal_ratio", 0.5),
        ("excludes", []),
        ("eval_fn", None),
        ("eval_args", ()),
        ("forced", False),
        ("with_group_conv", False),
    ]
    assert list(positional(runner.prune).items()) == [
        ("mode", "slim"),
        ("removal_ratio", None),
        ("index", None),
        ("pruning_info_path", None),
        ("channel_divisible", 2),
    ]


def calibration(model: torch.nn.Module, batches: list[torch.Tensor], number_forward: int = 2) -> None:
    """As in the published example."""
    model.train()
    with torch.no_grad():
        for batch in batches[:number_forward]:
            model(batch)


def evaluation(model: torch.nn.Module, scale: float) -> torch.Tensor:
    return torch.tensor(scale * closeness(model))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the example's batches are on the CPU")
def test_a_users_one_step_program_runs_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runner = pytorch_nndct.get_pruning_runner(net(), INPUTS, "one_step")
    runner.search(["0"], calibration, ([INPUTS] * 3,), 3, 0.3, [], evaluation, (2.0,))
    model = runner.prune(mode="slim")
    assert model.second.out_channels < 12
    assert sorted(p.name for p in Path(".vai").iterdir()) == [
        "Net.search", "Net_ratio_0.3_best.spec", "Net_ratio_0.3_pruning_info.json"
    ]  # fmt: skip
    runner = pytorch_nndct.OneStepPruningRunner(net(), (INPUTS,))
    assert runner.prune("sparse", 0.3, 0).second.out_channels == 12


def test_search_on_the_wrong_runner_names_the_right_one() -> None:
    runner = pytorch_nndct.get_pruning_runner(net(), INPUTS, "iterative")
    with pytest.raises(InvalidArgumentError, match=r"OneStepPruningRunner\(model, inputs\)\.search"):
        runner.search(gpus=["0"], eval_fn=closeness)
