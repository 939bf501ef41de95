"""A small network and evaluation functions, importable by worker processes, and a program that runs an analysis."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn

INPUTS = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Two groups of 8 and 12 channels, and one of 2 in which fewer sparsities differ."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, 12, 3, padding=1)
        self.third = nn.Conv2d(12, 2, 1)
        self.head = nn.Linear(2, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = self.third(torch.relu(self.second(x)))
        return self.head(x.mean((2, 3)))


def net(width: int = 8) -> Net:
    torch.manual_seed(0)
    return Net(width).eval()


def evaluations(width: int = 8) -> int:
    """Baseline, and the different kept counts of the groups."""
    counts = {8: 7, 6: 5}[width]
    return 1 + counts + 9 + 1


@torch.no_grad()
def distance(model: nn.Module, reference: torch.Tensor | None = None) -> float:
    """A loss: how far the outputs are from the dense network's, plus one."""
    reference = net()(INPUTS) if reference is None else reference
    return 1.0 + float((model(INPUTS) - reference).abs().mean())


def closeness(model: nn.Module) -> float:
    """An accuracy-like score."""
    return 2.0 - distance(model)


class Counted:
    """Scores like `closeness`, writes a line to a file at every call, and kills the process at one of them."""

    def __init__(self, log: str | Path, die_at: int = 0) -> None:
        self.log, self.die_at = Path(log), die_at

    def __call__(self, model: nn.Module) -> float:
        widths = [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
        with self.log.open("a") as file:
            file.write(f"{widths}\n")
        if self.die_at and self.calls() == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return closeness(model)

    def calls(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0


class DiesOnce:
    """Kills the worker at its first call anywhere."""

    def __init__(self, mark: str | Path) -> None:
        self.mark = Path(mark)

    def __call__(self, model: nn.Module) -> float:
        try:
            self.mark.touch(exist_ok=False)
        except FileExistsError:
            return closeness(model)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


if __name__ == "__main__":
    from channelwise.methods import IterativePruningRunner

    folder, log, die_at = sys.argv[1:]
    torch.set_num_threads(1)
    IterativePruningRunner(net(), INPUTS, folder=folder).ana(Counted(log, int(die_at)))
