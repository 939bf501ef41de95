"""Time the engine against a plain forward pass, and against torch-pruning where it has a counterpart; markdown out."""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import logging
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from yolo_sized import YoloSized

import channelwise as cw
from channelwise.select.budget import solve_budget
from pytorch_nndct import IterativePruningRunner

try:
    import torch_pruning
except ImportError:
    torch_pruning = None


@dataclass(frozen=True)
class Case:
    """A network and the side of its square input."""

    build: Callable[[], nn.Module]
    pixels: int = 224


CASES = {
    "resnet18": Case(torchvision.models.resnet18),
    "resnet50": Case(torchvision.models.resnet50),
    "densenet121": Case(torchvision.models.densenet121),
    "mobilenet_v2": Case(torchvision.models.mobilenet_v2),
    "inception_v3": Case(lambda: torchvision.models.inception_v3(init_weights=False), 299),
    "yolo_sized": Case(YoloSized, 640),
}


@dataclass
class Report:
    """Rows of the table, printed as they come."""

    repeats: int
    missed: list[str] = field(default_factory=list)

    def median_ms(self, call: Callable[[], object], repeats: int | None = None) -> float:
        """Median time of a call after one call to warm up."""
        return self.in_turns(call, repeats=repeats)[0]

    def in_turns(self, *calls: Callable[[], object], repeats: int | None = None) -> list[float]:
        """Median times of calls that alternate, so that a busy machine hits all of them."""
        times: list[list[float]] = [[] for _ in calls]
        for turn in range((repeats or self.repeats) + 1):
            for call, seen in zip(calls, times, strict=True):
                start = time.perf_counter()
                call()
                if turn:
                    seen.append(1000 * (time.perf_counter() - start))
        return [statistics.median(seen) for seen in times]

    def add(self, what: str, model: str, ms: float, forward: float, limit: tuple[str, float] | None = None) -> None:
        """A row; `limit` is ("x" of a forward pass or "ms", the figure not to exceed)."""
        goal = ""
        if limit is not None:
            kind, most = limit
            reached = ms / forward if kind == "x" else ms
            met = reached <= most
            goal = f"<= {most:g} {kind}" + ("" if met else " (missed)")
            if not met:
                self.missed.append(f"{what}, {model}: {reached:.2f} {kind}, goal {most:g}")
        print(f"| {what} | {model} | {ms:.2f} | {ms / forward:.3f} | {goal} |", flush=True)


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


def time_engine(report: Report, name: str) -> None:
    """Tracing, slimming, counting and solving for one network, and torch-pruning's counterparts."""
    case = CASES[name]
    model = randomised(case.build)
    x = torch.randn(1, 3, case.pixels, case.pixels)
    plain, traced = report.in_turns(forward(model, x), lambda: cw.trace(model, x))
    report.add("forward pass", name, plain, plain)
    goal = ("x", 4.0) if name in ("resnet50", "densenet121", "yolo_sized") else None
    report.add("trace: both passes and verification", name, traced, plain, goal)
    graph = cw.trace(model, x)
    selection = graph.select(macs=0.5)
    report.add("select half of the MACs", name, report.median_ms(lambda: graph.select(macs=0.5)), plain)
    slim = report.median_ms(lambda: graph.slim(selection))
    if name == "resnet50":
        report.add("slim model", name, slim, plain, ("ms", 60))
        count = report.median_ms(lambda: graph.macs(selection), 50)
        report.add("MACs of a selection", name, count, plain, ("ms", 1))
        time_budget(report, graph, name, plain)
    else:
        report.add("slim model", name, slim, plain)

    def whole() -> nn.Module:
        found = cw.trace(model, x)
        return found.slim(found.select(sparsity=0.5))

    report.add("trace, ranking, slim model", name, report.median_ms(whole), plain)
    time_torch_pruning(report, name, model, x, plain)


def time_budget(report: Report, graph: cw.ChannelGraph, name: str, plain: float) -> None:
    """How many channels of each group a budget leaves, without ranking them."""
    solve = report.median_ms(lambda: solve_budget(graph.structure, 0.5))
    report.add("budget solved", name, solve, plain, ("ms", 20))


def time_torch_pruning(report: Report, name: str, model: nn.Module, x: Tensor, plain: float) -> None:
    """Its dependency graph, and removing half of every group with it."""
    if torch_pruning is None:
        return
    pruned = []
    try:
        build = report.median_ms(lambda: torch_pruning.DependencyGraph().build_dependency(model, example_inputs=x))
        report.add("torch-pruning: dependency graph", name, build, plain)
        for _ in range(report.repeats):
            victim = copy.deepcopy(model)
            start = time.perf_counter()
            torch_pruning.pruner.MagnitudePruner(
                victim,
                x,
                importance=torch_pruning.importance.MagnitudeImportance(p=1),
                pruning_ratio=0.5,
                ignored_layers=outputs(victim),
            ).step()
            pruned.append(1000 * (time.perf_counter() - start))
        forward(victim, x)()
    except Exception as error:  # whatever the other library raises is its result for this network
        print(f"| torch-pruning | {name} | {type(error).__name__}: {str(error).splitlines()[0][:80]} | | |", flush=True)
        return
    report.add("torch-pruning: graph, ranking, pruning", name, statistics.median(pruned), plain)


def outputs(model: nn.Module) -> list[nn.Module]:
    """The layers that produce the network's outputs, which torch-pruning has to be told."""
    if isinstance(model, YoloSized):
        return [branch[-1] for head in model.heads for branch in (head.box, head.cls)]
    return [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1000]


def time_analysis(report: Report) -> None:
    """What `ana` adds to each evaluation of ResNet-18: the time of the call without that spent in `eval_fn`."""
    model = randomised(CASES["resnet18"].build)
    x = torch.randn(1, 3, 224, 224)
    plain = report.median_ms(forward(model, x))
    inside: list[float] = []

    def evaluate(candidate: nn.Module) -> float:
        start = time.perf_counter()
        score = candidate.fc.weight.abs().mean().item()
        inside.append(time.perf_counter() - start)
        return score

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        runner = IterativePruningRunner(model, x, folder=folder)
        start = time.perf_counter()
        runner.ana(evaluate)
        spent = time.perf_counter() - start
    overhead = 1000 * (spent - sum(inside)) / len(inside)
    report.add(f"ana: overhead of each of {len(inside)} evaluations", "resnet18", overhead, plain, ("ms", 15))


def time_sparse(report: Report, pairs: int = 30) -> None:
    """A sparse ResNet-18 against the dense one."""
    model = randomised(CASES["resnet18"].build)
    x = torch.randn(1, 3, 224, 224)
    graph = cw.trace(model, x)
    pruned = graph.sparse(graph.select(macs=0.5)).eval()
    dense, sparse = report.in_turns(forward(model, x), forward(pruned, x), repeats=pairs)
    report.add("sparse forward pass", "resnet18", sparse, dense, ("x", 1.05))


def processor() -> str:
    """The name of the CPU, where the system tells."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=sorted(CASES), default=list(CASES))
    parser.add_argument("--repeats", type=int, default=7, help="runs of which the median is taken")
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    torch.set_num_threads(1)
    report = Report(options.repeats)
    rival = f"torch-pruning {torch_pruning.__version__}" if torch_pruning else "torch-pruning not installed"
    print(f"{processor()}, one thread, torch {torch.__version__}, {rival}, medians of {options.repeats} runs")
    print(f"(load of the machine at the start: {os.getloadavg()[0]:.1f})\n")
    print("| what | network | ms | forward passes | goal |\n|---|---|--:|--:|---|")
    for name in options.models:
        time_engine(report, name)
    if "resnet18" in options.models:
        time_analysis(report)
        time_sparse(report)
    print("\nevery goal met" if not report.missed else "\nmissed: " + "; ".join(report.missed))


if __name__ == "__main__":
    main()
