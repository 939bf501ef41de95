"""Time a supernet against static networks of the same widths, and what belongs to it; markdown out."""

from __future__ import annotations

import argparse
import itertools
import random
import tempfile
from collections.abc import Callable

import numpy as np
import torch
import torchvision
from measuring import Report, randomised
from torch import Tensor, nn

import channelwise as cw
from channelwise.methods.ofa import OFAPruner
from channelwise.methods.ofa.evolution import FrontEvolution
from channelwise.methods.ofa.window import WindowSpace
from channelwise.search import Known, Request

NETWORKS = ("mobilenet_v2", "resnet50")
BATCH, PIXELS = 8, 112
GOALS = {"full width": 1.03, "minimum width": 1.05, "random widths": 1.10}
"""Times of a training pass of the dynamic network to that of the static one."""
SANDWICH, BUILD, EXTRACT, SAMPLE, PROPOSAL = 1.08, 1.5, 60.0, 1.0, 2.0


def step(model: nn.Module, x: Tensor) -> Callable[[], object]:
    """Forward and backward pass, gradients thrown away before."""

    def call() -> None:
        model.zero_grad(set_to_none=True)
        model(x).square().mean().backward()

    return call


def time_passes(report: Report, name: str, pruner: OFAPruner, supernet: nn.Module) -> None:
    """Training passes at different widths, and the four of a sandwich step."""
    x = torch.randn(BATCH, 3, PIXELS, PIXELS)
    generator = random.Random(0)
    settings = {"full width": pruner.sample_subnet(supernet, "max")[1]}
    settings["minimum width"] = pruner.sample_subnet(supernet, "min")[1]
    draws = [pruner.sample_subnet(supernet, "random", seed=generator.randrange(1000))[1] for _ in range(2)]
    static = {id(s): pruner.get_static_subnet(supernet, s)[0] for s in [*settings.values(), *draws]}
    settings["random widths"] = draws[0]
    for what, setting in settings.items():
        pruner.set_subnet(supernet, setting)
        plain, dynamic = report.in_turns(step(static[id(setting)], x), step(supernet, x))
        report.add(f"forward and backward, static, {what}", name, plain, plain)
        report.add(f"forward and backward, dynamic, {what}", name, dynamic, plain, ("x", GOALS[what]))
    four = [settings["full width"], settings["minimum width"], *draws]

    def sandwich_step() -> None:
        supernet.zero_grad(set_to_none=True)
        for setting in four:
            pruner.set_subnet(supernet, setting)
            supernet(x).square().mean().backward()

    def static_steps() -> None:
        for setting in four:
            step(static[id(setting)], x)()

    plain, dynamic = report.in_turns(static_steps, sandwich_step)
    report.add("four static steps", name, plain, plain)
    report.add("one sandwich step, four subnets", name, dynamic, plain, ("x", SANDWICH))


def time_surgery(report: Report, name: str, model: nn.Module, pruner: OFAPruner, supernet: nn.Module) -> None:
    """Building, sampling and extracting."""
    x = torch.randn(1, 3, 224, 224)
    traced, built = report.in_turns(lambda: cw.trace(model, x), lambda: pruner.ofa_model())
    report.add("trace", name, traced, traced)
    report.add("supernet built and checked", name, built, traced, ("x", BUILD))
    sampled = report.median_ms(lambda: pruner.sample_subnet(supernet, "random"), 300)
    report.add("sample_subnet", name, sampled, traced, ("ms", SAMPLE))
    _, setting = pruner.sample_subnet(supernet, "random", seed=0)
    extracted = report.median_ms(lambda: pruner.get_static_subnet(supernet, setting))
    report.add("static subnet extracted", name, extracted, traced, ("ms", EXTRACT) if name == "resnet50" else None)


def time_proposals(report: Report, name: str, pruner: OFAPruner) -> None:
    """A child of known subnets, moved into a window of one percent of the MACs: what a search does per candidate."""
    space = pruner.search_space
    full = float(space.macs(space.maximum))
    window = WindowSpace(space, 0.595 * full, 0.605 * full)
    strategy = FrontEvolution(step=full / 200e6)
    rng = np.random.default_rng(0)
    vectors = [window.encode(window.project(rng.random(window.dims))) for _ in range(100)]
    finished = tuple(Known(number, vector, rng.random()) for number, vector in enumerate(vectors))
    numbers = itertools.count(len(finished))

    def propose() -> None:
        request = Request(window, finished, (), np.empty((0, window.dims)), next(numbers), 0)  # type: ignore[arg-type]
        window.project(strategy(request))

    proposed = report.median_ms(propose, 100)
    report.add("candidate proposed in the window, 100 known", name, proposed, proposed, ("ms", PROPOSAL))


def time_sampling(report: Report, name: str) -> None:
    """Sampling alone, of a network with long concatenations."""
    model = randomised(getattr(torchvision.models, name))
    pruner = OFAPruner(model, torch.randn(1, 3, 224, 224), quiet=True)
    supernet = pruner.ofa_model()
    sampled = report.median_ms(lambda: pruner.sample_subnet(supernet, "random"), 300)
    report.add("sample_subnet", name, sampled, sampled, ("ms", SAMPLE))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--repeats", type=int, default=15, help="runs of which the median is taken")
    args = parser.parse_args()
    report = Report(args.repeats, "times the one to compare with", f"; batch {BATCH} of {PIXELS} px")
    for name in args.models:
        model = randomised(getattr(torchvision.models, name))
        with tempfile.TemporaryDirectory() as folder:
            pruner = OFAPruner(model, torch.randn(1, 3, 224, 224), folder=folder, quiet=True)
            supernet = pruner.ofa_model().train()
            time_passes(report, name, pruner, supernet)
            time_surgery(report, name, model, pruner, supernet)
            time_proposals(report, name, pruner)
    time_sampling(report, "densenet121")
    report.end()


if __name__ == "__main__":
    main()
