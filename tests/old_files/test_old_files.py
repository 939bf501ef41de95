"""Files written by an earlier version still load, and give what they gave then."""

from __future__ import annotations

import gzip
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch

import channelwise as cw
from channelwise.methods import IterativePruningRunner, OFAPruner, OneStepPruningRunner
from tests.methods.small import INPUTS, closeness, net

HERE = Path(__file__).parent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files as they lay in one folder of results."""
    for path in HERE.glob("*.*"):
        if path.suffix == ".gz":
            (tmp_path / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
        elif path.suffix != ".py":
            shutil.copy(path, tmp_path)
    return tmp_path


def widths(model: torch.nn.Module) -> list[int]:
    return [m.out_channels for m in model.modules() if isinstance(m, torch.nn.Conv2d)]


def test_slim_models(folder: Path) -> None:
    slim = cw.load(net(), folder / "Net.safetensors")
    assert widths(slim) == [4, 12, 1]
    graph = cw.trace(net(), INPUTS)
    selection = cw.Selection.from_json(json.loads((folder / "selection.json").read_text()), graph.structure)
    assert torch.equal(slim(INPUTS), graph.slim(selection)(INPUTS))


def test_selections(folder: Path) -> None:
    graph = cw.trace(net(), INPUTS)
    plain = cw.Selection.from_json(json.loads((folder / "selection.json").read_text()))
    pickled = pickle.loads((folder / "selection.pickle").read_bytes())
    assert plain == pickled
    assert widths(graph.slim(pickled)) == [4, 12, 1]


def test_analyses_and_specs(folder: Path) -> None:
    def never(model: torch.nn.Module) -> float:
        raise AssertionError("nothing is left to evaluate")

    runner = IterativePruningRunner(net(), INPUTS, folder=folder, quiet=True)
    runner.ana(never)
    again = runner.prune(spec_path=folder / "Net_ratio_0.5.spec", mode="slim")
    assert widths(again) == widths(runner.prune(removal_ratio=0.5, mode="slim"))


def test_searches(folder: Path) -> None:
    runner = OneStepPruningRunner(net(), INPUTS, folder=folder, quiet=True)
    assert len(runner.results(removal_ratio=0.5).trials) == 2
    assert runner.prune(removal_ratio=0.5)(INPUTS).shape == (2, 5)


def test_subnets_spaces_and_their_searches(folder: Path) -> None:
    pruner = OFAPruner(net(), INPUTS, folder=folder, quiet=True)
    supernet = pruner.ofa_model([0.5, 1], 2, auto_add_excludes=False)
    subnets = pruner.load_subnet_config(folder / "subnets.json")
    calls: list[int] = []

    def counted(model: torch.nn.Module) -> float:
        calls.append(1)
        return closeness(model)

    found = pruner.run_evolutionary_search(
        supernet, None, (), counted, (), "acc", "max", parent_popu_size=3, iteration=1, mutate_size=1,
        crossover_size=1, flops_step=0.01,
    )  # fmt: skip
    assert not calls
    for subnet in [*found.values(), *subnets.values()]:
        # What these are called is not the same in all releases.
        del subnet["net_id"], subnet["mode"]
    assert found == subnets
