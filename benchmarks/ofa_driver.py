"""What a search among subnets costs besides evaluations: the driver's time a candidate, from 100 to 10,000 of them.

Evaluations are simulated: a score is made up from the widths, and candidates come back in random order from as many
workers as are said. All else is the search as users run it: the strategy, the window of MACs, the file of results.
Goals: a candidate takes no more than 1.5 times as long at the end as after 100, and less than 5 ms.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from measuring import head, machine, row
from torchvision.models import mobilenet_v2

from channelwise.execution import Result, Task
from channelwise.methods.ofa import OFAPruner
from channelwise.methods.ofa.evolution import FrontEvolution
from channelwise.methods.ofa.window import WindowSpace
from channelwise.methods.search_loop import SearchRun
from channelwise.search import open_study

MARKS = (100, 500, 1000, 2000, 5000, 10000)
AROUND = 50


class SimulatedWorkers:
    """An executor whose workers take random times and none of the processor's; notes the driver's time a candidate."""

    def __init__(self, workers: int, height: Any) -> None:
        self.capacity, self._height = workers, height
        self.times: list[float] = []

    def run(self, tasks: Iterable[Task]) -> Iterator[Result]:
        rng, source, busy = random.Random(0), iter(tasks), list[Task]()
        start = time.process_time()
        while True:
            while len(busy) < self.capacity and (task := next(source, None)) is not None:
                busy.append(task)
            if not busy:
                return
            task = busy.pop(rng.randrange(len(busy)))
            result = Result(task, self._height(task.payload), 0.01)
            yield result
            end = time.process_time()
            self.times.append(1000 * (end - start))
            start = end

    def close(self) -> None:
        """Nothing to free."""


def searched(space: WindowSpace, executor: SimulatedWorkers, candidates: int) -> list[float]:
    """The driver's times of a search."""
    with tempfile.TemporaryDirectory() as folder:
        place, strategy = Path(folder) / "driver.ofa", FrontEvolution(step=0.1)
        with open_study(space, "MobileNetV2", storage=place, strategy=strategy, budget=candidates) as study:
            run = SearchRun(study, candidates, quiet=True, payload=lambda candidate: dict(candidate.counts))
            run.evaluate(lambda _: executor)
    return executor.times


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--candidates", type=int, nargs="+", default=[5000, 10000], help="one number for every workers")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    pruner = OFAPruner(mobilenet_v2(num_classes=10).eval(), torch.randn(1, 3, 64, 64), quiet=True)
    pruner.ofa_model([0.25, 0.5, 0.75, 1])
    supernet_space = pruner.search_space
    low, high = (float(supernet_space.macs(v)) for v in (supernet_space.minimum, supernet_space.maximum))
    taste = np.random.default_rng(0).random(len(supernet_space.names))

    def height(values: Mapping[str, int]) -> float:
        shares = np.array(list(values.values())) / supernet_space.maximum
        return round(float((taste * np.sqrt(shares)).sum() / taste.sum()), 4)

    print(
        f"{machine()}; MobileNetV2, {len(supernet_space.free)} choices; ms of the driver a candidate (median of 100)\n"
    )
    print(*head("workers:", "candidates:", *(f"at {mark}:" for mark in MARKS), "mean:", "all, s:"), sep="\n")
    missed, said = 0, list[str]()
    for workers, candidates in zip(options.workers, options.candidates, strict=True):
        space = WindowSpace(supernet_space, low + 0.1 * (high - low), low + 0.9 * (high - low))
        times = searched(space, SimulatedWorkers(workers, height), candidates)
        at = {m: median(times[max(0, m - 2 * AROUND) : m]) for m in MARKS if m <= candidates}
        mean, total, grown = sum(times) / len(times), sum(times) / 1000, at[max(at)] / at[100]
        print(
            row(workers, candidates, *(f"{at[m]:.2f}" if m in at else "" for m in MARKS), f"{mean:.2f}", f"{total:.0f}")
        )
        said.append(
            f"{workers} workers: {grown:.2f} times as long at {max(at)} as at 100, goal 1.5; {mean:.2f} ms, goal 5"
        )
        missed += mean >= 5 or grown > 1.5
    print("", *said, sep="\n")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
