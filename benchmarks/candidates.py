"""Time what a candidate of the one-step search costs apart from the user's own functions; markdown out."""

from __future__ import annotations

import argparse
import copy
import logging
import tempfile
import time
from typing import Any

import torch
import torchvision
from measuring import Report, forward, randomised
from torch import nn

import channelwise as cw
from channelwise.evaluate.candidate import pack
from channelwise.evaluate.job import CandidateJob
from channelwise.ranking import Random
from channelwise.recovery import compensate_from_grams
from channelwise.statistics import gather

GOALS = {"resnet18": 30.0, "resnet50": 80.0}
"""Milliseconds a candidate may cost."""
FIRST, MORE = 20, 60
"""Candidates of the search that is timed: those before, when the file is made, and those timed."""


def nothing(model: nn.Module) -> float:
    """An evaluation that takes no time."""
    return 0.0


def candidates(graph: cw.ChannelGraph, count: int) -> list[dict[str, str]]:
    """Different selections of half of the MACs, packed."""
    return [pack(graph.select(macs=0.5, ranking=Random(seed)), graph.structure) for seed in range(count)]


def time_candidates(report: Report, name: str) -> None:
    """Building and scoring slim candidates, and what re-estimation adds to the forward passes it needs."""
    model = randomised(getattr(torchvision.models, name))
    x = torch.randn(1, 3, 224, 224)
    plain = report.median_ms(forward(model, x))
    report.add("forward pass of one image", name, plain, plain)
    graph = cw.trace(model, x)
    job = CandidateJob(model, graph.structure, nothing, ())
    job.prepare(torch.device("cpu"))
    payloads = iter(candidates(graph, report.repeats + 1))
    built = report.median_ms(lambda: job(next(payloads)))
    report.add("candidate built, nothing evaluated", name, built, plain, ("ms", GOALS[name]))

    with tempfile.TemporaryDirectory() as folder:
        runner = cw.OneStepPruningRunner(model, x, folder=folder, quiet=True)
        given: dict[str, Any] = {"eval_fn": nothing, "calibration_fn": nothing, "removal_ratio": 0.5}
        runner.search(num_subnet=FIRST, **given)
        start = time.perf_counter()
        runner.search(num_subnet=FIRST + MORE, **given)
        each = 1000 * (time.perf_counter() - start) / MORE
    report.add(f"candidate of a search, one of {MORE}, all in all", name, each, plain, ("ms", GOALS[name]))

    slim = graph.slim(graph.select(macs=0.5))
    batch = torch.randn(8, 3, 224, 224)
    training = copy.deepcopy(slim).train()
    passes, whole = report.in_turns(forward(training, batch), lambda: cw.recovery.recalibrate(slim, [batch]))
    report.add("forward pass of 8 images, half of the MACs, train mode", name, passes, plain)
    report.add("re-estimation on them", name, whole, plain)
    grams = gather(model, graph.structure, [batch])
    selections = [graph.select(macs=0.5, ranking=Random(seed)) for seed in range(3)]
    start = time.perf_counter()
    for selection in selections:
        compensate_from_grams(graph.slim(selection), model, graph.structure, selection, grams)
    report.add("weights re-fitted (optional)", name, 1000 * (time.perf_counter() - start) / len(selections), plain)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=sorted(GOALS), default=sorted(GOALS))
    parser.add_argument("--repeats", type=int, default=7, help="runs of which the median is taken")
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    report = Report(options.repeats)
    for name in options.models:
        time_candidates(report, name)
    report.end()


if __name__ == "__main__":
    main()
