"""Searches among the subnets of a trained supernet compared at equal evaluations: evolution, NSGA-II, random.

The supernet is one that ``examples/cifar10_ofa.py`` trained. A search is judged by its front: the best score within a
budget, averaged over budgets from the smallest to the largest subnet, and by the test accuracy of what it found for
three budgets. An output folder that holds an earlier run is refused: its later evaluations would count as early ones.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import cifar
import numpy as np
import optuna
import torch
from cifar import accuracy
from measuring import head, row

import channelwise as cw
from channelwise.methods.ofa.evolution import FrontEvolution
from channelwise.search import RandomSearch, Request
from channelwise.search.sampler import quiet_optuna
from pytorch_nndct import OFAPruner

POPULATION, CHILDREN = 16, 12
BUDGETS = (0.4, 0.5, 0.7)
# What a search has that found nothing within a budget: guessing among ten classes.
CHANCE = 10.0


class NsgaII:
    """Optuna's NSGA-II (Deb et al., 2002) with two goals: a high score, few MACs.

    It begins with the candidates that the evolution begins with. The sampler numbers its generations as trials come, so
    the finished ones are told to it anew, in their order.
    """

    name = "nsga2"
    guided = True

    def __call__(self, request: Request) -> np.ndarray:
        """The next vector (dims,)."""
        if request.number < POPULATION:
            return FrontEvolution(POPULATION)(request)
        space: Any = request.space
        seed = int(request.rng().integers(2**31))
        sampler = optuna.samplers.NSGAIISampler(population_size=POPULATION, seed=seed)
        distributions = {name: optuna.distributions.FloatDistribution(0.0, 1.0) for name in space.free}
        with quiet_optuna():
            study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
            for known in request.finished:
                study.enqueue_trial(dict(zip(space.free, map(float, known.vector), strict=True)))
                trial = study.ask(distributions)
                study.tell(trial, [known.merit, float(space.space.macs(space.snapped(known.vector[None]))[0])])
            sampler.reseed_rng()
            trial = study.ask(distributions)
        return np.array([trial.params[name] for name in space.free])


STRATEGIES = {"evolution": lambda: None, "nsga2": NsgaII, "random": RandomSearch}


def front_score(front: dict[str, dict[str, Any]], low: float, high: float) -> float:
    """Mean over 100 budgets from ``low`` to ``high`` million MACs of the best score within the budget."""
    found = [(subnet["macs"], subnet["acc1"]) for subnet in front.values()]
    return fmean(
        max((score for macs, score in found if macs <= budget), default=CHANCE)
        for budget in np.linspace(low, high, 101)[1:]
    )


def main() -> int:
    parser = cifar.options(__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="state dict of the dense network")
    parser.add_argument("--supernet", type=Path, required=True, help="training.pt of examples/cifar10_ofa.py")
    parser.add_argument("--strategies", nargs="+", choices=sorted(STRATEGIES), default=list(STRATEGIES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--generations", type=int, nargs="+", default=[2, 7], help="when the fronts are looked at")
    parser.add_argument("--output", type=Path, default=Path("ofa-search-output"))
    options = parser.parse_args()
    options.output.mkdir(parents=True)

    labelled, scored, test = cifar.load(options.data, options.images)
    calibration = [x for x, _ in labelled]
    state = torch.load(options.supernet, map_location="cpu", weights_only=True)
    model = cifar.network(state["options"]["arch"], options.checkpoint)

    rows: dict[str, dict[str, list[float]]] = {}
    for seed in range(options.seeds):
        for name in options.strategies:
            pruner = OFAPruner(model, torch.zeros(1, 3, 32, 32), folder=options.output / f"{name}-{seed}", quiet=True)
            supernet = pruner.ofa_model(
                state["options"]["expand_ratio"], state["options"]["channel_divisible"], auto_add_excludes=False
            )
            supernet.load_state_dict(state["net"])
            space = pruner.search_space
            low, high = (float(space.macs(values)) / 1e6 for values in (space.minimum, space.maximum))
            found = rows.setdefault(name, {})
            for generations in options.generations:
                front = pruner.run_evolutionary_search(
                    supernet, eval_fn=accuracy, eval_args=(scored,), flops_step=1, parent_popu_size=POPULATION,
                    iteration=generations, loader=calibration, seed=seed, strategy=STRATEGIES[name](),
                )  # fmt: skip
                evaluations = POPULATION + CHILDREN * generations
                found.setdefault(f"front after {evaluations}", []).append(front_score(front, low, high))
            for budget in BUDGETS:
                fitting = [subnet for subnet in front.values() if subnet["macs"] <= budget * high]
                reached = float("nan")
                if fitting:
                    best = max(fitting, key=lambda subnet: subnet["acc1"])
                    static = pruner.get_static_subnet(supernet, best["subnet_setting"])[0]
                    reached = accuracy(cw.recovery.recalibrate(static.eval(), calibration), test)
                found.setdefault(f"test, {budget:.0%} of the MACs", []).append(reached)
            print(f"seed {seed}, {name}: " + ", ".join(f"{k} {v[-1]:.2f}" for k, v in found.items()), flush=True)

    columns = list(next(iter(rows.values())))
    print("\nmean over the seeds, and the least and the most, in percent\n")
    print(*head("search", *(f"{column}:" for column in columns)), sep="\n")
    for name, found in rows.items():
        print(row(name, *(f"{fmean(found[c]):.2f} ({min(found[c]):.2f} to {max(found[c]):.2f})" for c in columns)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
