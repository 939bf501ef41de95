"""What the benchmarks share: times of calls that take turns, tables in Markdown, and goals met or missed."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn


def row(*cells: object) -> str:
    """A line of a table."""
    return f"| {' | '.join(' '.join(str(cell).split()).replace('|', chr(92) + '|') for cell in cells)} |"


def head(*names: str) -> list[str]:
    """The first two lines of a table; a column of numbers has a name that ends in a colon."""
    rule = "|".join("--:" if name.endswith(":") else "---" for name in names)
    return [row(*(name.removesuffix(":") for name in names)), f"|{rule}|"]


class Report:
    """Rows of a table of times, printed as they come, and what became of the goals."""

    def __init__(self, repeats: int, beside: str = "forward passes", versions: str = "") -> None:
        """``repeats`` runs of which the median is taken; times are also given in units of ``beside``."""
        self.repeats = repeats
        self.beside = beside
        self.goals: list[str] = []
        print(f"{machine()}, processor time of one thread, medians of {repeats} runs{versions}\n")
        torch.set_num_threads(1)
        print(*head("what", "network", "ms:", f"{beside}:", "goal"), sep="\n")

    def median_ms(self, call: Callable[[], object], repeats: int | None = None) -> float:
        """Median time of a call after one call to warm up."""
        return self.in_turns(call, repeats=repeats)[0]

    def in_turns(self, *calls: Callable[[], object], repeats: int | None = None) -> list[float]:
        """Median times of calls that alternate, so that a busy machine hits all of them.

        Times are those of the processor, which other processes disturb least: with one thread, nothing runs beside.
        """
        times: list[list[float]] = [[] for _ in calls]
        for turn in range((repeats or self.repeats) + 1):
            for call, seen in zip(calls, times, strict=True):
                start = time.process_time()
                call()
                if turn:
                    seen.append(1000 * (time.process_time() - start))
        return [statistics.median(seen) for seen in times]

    def add(self, what: str, network: str, ms: float, unit: float, goal: tuple[str, float] | None = None) -> None:
        """A row; ``unit`` is the time to compare with, ``goal`` the most allowed: ("x", units) or ("ms", ms)."""
        said = ""
        if goal is not None:
            kind, most = goal
            reached = ms / unit if kind == "x" else ms
            said = f"<= {most:g} {kind}" + ("" if reached <= most else " (missed)")
            measure = self.beside if kind == "x" else "ms"
            verdict = "met" if reached <= most else "missed"
            self.goals.append(f"{network}, {what}: {reached:.2f} {measure}, goal {most:g}: {verdict}")
        print(row(what, network, f"{ms:.{2 if ms >= 1 else 3}f}", f"{ms / unit:.3f}", said), flush=True)

    def end(self) -> None:
        """Print every goal with what was reached."""
        print("", *self.goals, sep="\n")


def machine() -> str:
    """The processor, PyTorch, and how busy it is."""
    return f"{processor()}, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}"


def processor() -> str:
    """The name of the CPU, where the system says it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def randomised(build: Callable[[], nn.Module]) -> nn.Module:
    """The network in eval mode, its batch-norm statistics away from 0 and 1."""
    torch.manual_seed(0)
    model = build().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
    return model


def forward(model: nn.Module, x: Tensor) -> Callable[[], object]:
    """A plain inference pass."""

    def call() -> object:
        with torch.no_grad():
            return model(x)

    return call
