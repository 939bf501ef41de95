"""Candidates a second of a CPU-bound evaluation: one worker on one core against several workers; markdown out."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator

import torch
import torchvision
from measuring import head, machine, row
from torch import nn

import channelwise as cw
from channelwise.evaluate.candidate import pack
from channelwise.evaluate.job import CandidateJob
from channelwise.execution import Executor, Task
from channelwise.execution.devices import usable_cores
from channelwise.execution.inprocess import InProcess
from channelwise.execution.workers import WorkerPool

CPU = torch.device("cpu")
GOAL = 1.7
"""At least so many times the candidates with two cores."""


def evaluate(model: nn.Module, batch: torch.Tensor, passes: int) -> float:
    """Forward passes and nothing else."""
    with torch.no_grad():
        return float(sum(model(batch).mean() for _ in range(passes)))


def on_ray(job: CandidateJob, workers: int) -> Executor:
    """Imported here, because Ray is optional."""
    from channelwise.execution.ray import RayCluster

    return RayCluster(job, device=CPU, workers=workers)


def candidates_a_second(start: Callable[[], Executor], payloads: list[dict[str, object]], threads: int) -> float:
    """Rate over all payloads after the workers have started and seen one each."""
    torch.set_num_threads(threads)
    executor = start()
    try:
        list(executor.run(named(payloads[: executor.capacity])))
        begin = time.perf_counter()
        for result in executor.run(named(payloads)):
            if result.error is not None:
                raise result.error
        return len(payloads) / (time.perf_counter() - begin)
    finally:
        executor.close()


def named(payloads: list[dict[str, object]]) -> Iterator[Task]:
    """The payloads as tasks."""
    return (Task(f"candidate {number}", payload) for number, payload in enumerate(payloads))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--candidates", type=int, default=32)
    parser.add_argument("--passes", type=int, default=4, help="forward passes of a candidate")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions in turn; the best of each counts")
    parser.add_argument("--workers", type=int, default=min(2, usable_cores()))
    parser.add_argument("--ray", action="store_true", help="time a local Ray too")
    options = parser.parse_args()

    torch.manual_seed(0)
    model = torchvision.models.resnet18().eval()
    batch = torch.randn(4, 3, 112, 112)
    graph = cw.trace(model, batch)
    job = CandidateJob(model, graph.structure, evaluate, (batch, options.passes))
    packed = pack(graph.select(macs=0.5), graph.structure)
    payloads: list[dict[str, object]] = [dict(packed) for _ in range(options.candidates)]

    workers, cores = options.workers, usable_cores()
    rows: dict[str, tuple[Callable[[], Executor], int]] = {
        "in process, 1 thread": (lambda: InProcess(job, [CPU]), 1),
        f"in process, {cores} threads": (lambda: InProcess(job, [CPU]), cores),
        f"{workers} worker processes": (lambda: WorkerPool(job, [CPU] * workers), 1),
    }
    if options.ray:
        rows[f"Ray, {workers} workers"] = (lambda: on_ray(job, workers), 1)
    best = dict.fromkeys(rows, 0.0)
    for _ in range(options.rounds):
        for name, (start, threads) in rows.items():
            best[name] = max(best[name], candidates_a_second(start, payloads, threads))

    print(f"{machine()}, {cores} cores\n")
    print(*head("where", "candidates/s:", "to one core:"), sep="\n")
    first = best["in process, 1 thread"]
    for name, rate in best.items():
        print(row(name, f"{rate:.2f}", f"{rate / first:.2f}"))
    reached = best[f"{workers} worker processes"] / first
    print(f"\n{workers} workers: {reached:.2f} times one core (goal with two cores: {GOAL})")


if __name__ == "__main__":
    main()
