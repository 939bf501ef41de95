"""Time the engine against a plain forward pass, and against torch-pruning where it has a counterpart; markdown out."""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torchvision
from measuring import Report, forward, randomised, row
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
TRACE_GOALS = {"resnet50": 4.0, "densenet121": 4.0, "yolo_sized": 4.0, "mobilenet_v2": 5.0}
"""Forward passes that a trace may take."""


def time_engine(report: Report, name: str) -> None:
    """Tracing, slimming, counting and solving for one network, and torch-pruning's counterparts."""
    case = CASES[name]
    model = randomised(case.build)
    x = torch.randn(1, 3, case.pixels, case.pixels)
    plain, traced = report.in_turns(forward(model, x), lambda: cw.trace(model, x))
    report.add("forward pass", name, plain, plain)
    goal = ("x", TRACE_GOALS[name]) if name in TRACE_GOALS else None
    report.add("trace: both passes and verification", name, traced, plain, goal)
    graph = cw.trace(model, x)
    selection = graph.select(macs=0.5)
    report.add("select half of the MACs", name, report.median_ms(lambda: graph.select(macs=0.5)), plain)
    count = report.median_ms(lambda: graph.macs(selection), 50)
    report.add("MACs of a selection", name, count, plain, ("ms", 0.1))
    solve = report.median_ms(lambda: solve_budget(graph.structure, 0.5))
    report.add("budget solved, channels not ranked", name, solve, plain, ("ms", 20) if name == "resnet50" else None)
    slim = report.median_ms(lambda: graph.slim(selection))
    report.add("slim model", name, slim, plain, ("ms", 60) if name == "resnet50" else None)

    def whole() -> nn.Module:
        found = cw.trace(model, x)
        return found.slim(found.select(sparsity=0.5))

    report.add("trace, ranking, slim model", name, report.median_ms(whole), plain)
    time_torch_pruning(report, name, model, x, plain)


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
        said = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
        print(row("torch-pruning", name, said, "", ""), flush=True)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=sorted(CASES), default=list(CASES))
    parser.add_argument("--repeats", type=int, default=7, help="runs of which the median is taken")
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    rival = f"torch-pruning {torch_pruning.__version__}" if torch_pruning else "torch-pruning not installed"
    report = Report(options.repeats, versions=f", {rival}")
    for name in options.models:
        time_engine(report, name)
    if "resnet18" in options.models:
        time_analysis(report)
        time_sparse(report)
    report.end()


if __name__ == "__main__":
    main()
