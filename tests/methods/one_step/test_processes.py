"""`prune` gives the same weights whether the search ran in this process or in another one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import channelwise as cw
from channelwise.methods import OneStepPruningRunner
from tests.methods.searched import IMAGES, INPUTS, LOADER, nearness, wide

Weights = dict[str, torch.Tensor]


def calibrate(model: nn.Module, images: torch.Tensor) -> None:
    """As users' functions do: forward passes in train mode, with a moving average."""
    model.train()
    with torch.no_grad():
        for batch in images.split(32):
            model(batch)


def random_ranking(group: Any, tensors: Any) -> torch.Tensor:
    return torch.rand(group.size, generator=torch.Generator().manual_seed(group.size))


class ByObject:
    """The search and the pruning of a `OneStep` with the same arguments, but for the divisor of the pruning."""

    def __init__(self, repair: Callable[[], cw.Repair], divisor: int = 2, ranking: Any = None) -> None:
        self.repair, self.divisor, self.ranking = repair, divisor, ranking

    def method(self, folder: str, **channels: Any) -> cw.OneStep:
        channels = {"ranking": self.ranking, **channels}
        return cw.OneStep(cw.trace(wide(), INPUTS), self.repair(), cw.Channels(**channels), folder=folder, quiet=True)

    def search(self, folder: str) -> cw.OneStep:
        method = self.method(folder)
        method.search(cw.Target(macs=0.5), cw.Evaluation(nearness), options=cw.SearchOptions(candidates=2))
        return method

    def prune(self, folder: str, searched: cw.OneStep | None = None) -> nn.Module:
        method = searched if searched is not None and self.divisor == 2 else None
        method = method or self.method(folder, channel_divisible=self.divisor)
        return method.prune()


class ByRunner:
    """The same with the keywords of the runner, which get the loader again."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    def search(self, folder: str) -> OneStepPruningRunner:
        runner = OneStepPruningRunner(wide(), INPUTS, folder=folder, quiet=True)
        runner.search(num_subnet=2, eval_fn=nearness, loader=LOADER)
        return runner

    def prune(self, folder: str, searched: OneStepPruningRunner | None = None) -> nn.Module:
        runner = searched or OneStepPruningRunner(wide(), INPUTS, folder=folder, quiet=True)
        return runner.prune(loader=LOADER, **self.options)


CASES: dict[str, Any] = {
    "weights re-fitted": ByObject(lambda: cw.Repair(LOADER)),
    "batch norms alone": ByObject(lambda: cw.Repair(cw.Images(LOADER, 2), compensate=False)),
    "the user's function": ByObject(lambda: cw.Repair(calibration_fn=calibrate, calib_args=(IMAGES,))),
    "another divisor": ByObject(lambda: cw.Repair(LOADER), divisor=4),
    "another divisor, ranking by name": ByObject(lambda: cw.Repair(), divisor=4, ranking="fpgm"),
    "another divisor, ranking of the user": ByObject(lambda: cw.Repair(LOADER), divisor=4, ranking=random_ranking),
    "runner": ByRunner(),
    "runner, another divisor": ByRunner(channel_divisible=4),
}


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(other[name], value) for name, value in one.items())


def test_pruned_models_are_the_same_wherever_the_search_ran(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    together = {case: one.prune(str(here / case), one.search(str(here / case))) for case, one in CASES.items()}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, __file__, str(tmp_path)], check=True, env=environment, cwd=tmp_path)
    pruned_there = torch.load(tmp_path / "pruned.pth")
    searched_there = {case: one.prune(str(there / case)) for case, one in CASES.items()}
    expected = {case: model.state_dict() for case, model in together.items()}
    assert [case for case in CASES if not same(expected[case], pruned_there[case])] == []
    assert [case for case in CASES if not same(expected[case], searched_there[case].state_dict())] == []


if __name__ == "__main__":
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    for case, one in CASES.items():
        one.search(str(root / "there" / case))
    pruned = {case: one.prune(str(root / "here" / case)).state_dict() for case, one in CASES.items()}
    torch.save(pruned, root / "pruned.pth")
