"""How many evaluations a guided search saves: best score after n candidates, against random search, over several seeds.

ResNet-20 on CIFAR-10 at a share of its MACs. A candidate's score is its accuracy on held-out training images after
batch norms were re-estimated on other training images; weights are not re-fitted. "random" and "default" choose
channels by the same ranking, so only the widths are searched; "random:l1" chooses them by L1 norm, as other tools do.
Every evaluation is kept in the output folder: an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

import cifar_data
from cifar10_iterative import accuracy
from cifar_resnet import resnet20

from pytorch_nndct import OneStepPruningRunner

SHOWN = (1, 2, 5, 10, 20, 50, 100, 150, 200)


def best_so_far(scores: list[float]) -> list[float]:
    """The running maximum."""
    best: list[float] = []
    for score in scores:
        best.append(max(score, best[-1]) if best else score)
    return best


def evaluations_to_reach(curve: list[float], level: float) -> float:
    """How many evaluations a search needs to reach a score; infinite if it does not."""
    return next((n for n, score in enumerate(curve, start=1) if score >= level), float("inf"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of train.npz and test.npz, or for torchvision")
    parser.add_argument("--checkpoint", type=Path, required=True, help="state dict of the dense network")
    parser.add_argument("--ratio", type=float, default=0.5, help="share of MACs removed")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--random", type=int, default=200, help="candidates of a random search")
    parser.add_argument("--guided", type=int, default=100, help="candidates of a guided search")
    parser.add_argument("--strategies", nargs="+", default=["random", "random:l1", "default"])
    parser.add_argument("--images", type=int, default=1000, help="images for calibration, and as many for scores")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("search-output"))
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")

    training, _ = cifar_data.load(options.data)
    calibration = [x for x, _ in training[: options.images].batches(250)]
    scored = training[len(training) - options.images :]
    model = resnet20()
    model.load_state_dict(torch.load(options.checkpoint, map_location="cpu", weights_only=True))
    model.to(memory_format=torch.channels_last).eval()

    curves: dict[str, list[list[float]]] = {}
    for seed in range(options.seeds):
        for strategy in options.strategies:
            name, _, ranking = strategy.partition(":")
            given = {**({} if name == "default" else {"strategy": name}), **({"ranking": ranking} if ranking else {})}
            runner = OneStepPruningRunner(
                model, torch.zeros(1, 3, 32, 32), folder=options.output / f"{strategy}-{seed}", quiet=True
            )
            runner.search(
                num_subnet=options.random if name == "random" else options.guided,
                removal_ratio=options.ratio,
                eval_fn=accuracy,
                eval_args=(scored,),
                loader=calibration,
                compensate=False,
                seed=seed,
                workers=options.workers if options.workers > 1 else None,
                **given,
            )
            results = runner.results()
            curves.setdefault(strategy, []).append(best_so_far([t.score or 0.0 for t in results.complete]))
            print(f"seed {seed}, {strategy}: best of {len(results.complete)} is {results.best.score:.1f}", flush=True)
    (options.output / "curves.json").write_text(json.dumps(curves) + "\n")

    print("\nmedian over the seeds of the best score (%) after n evaluations\n")
    print("| n | " + " | ".join(curves) + " |")
    print("|--:|" + "--:|" * len(curves))
    for n in SHOWN:
        cells = [
            f"{median(c[n - 1] for c in runs):.1f}" if all(len(c) >= n for c in runs) else ""
            for runs in curves.values()
        ]
        print(f"| {n} | " + " | ".join(cells) + " |")
    for chance in (name for name in curves if name.startswith("random")):
        for strategy, runs in curves.items():
            if strategy.startswith("random"):
                continue
            pairs = list(zip(runs, curves[chance], strict=True))
            needed = median(evaluations_to_reach(guided, other[-1]) for guided, other in pairs)
            n = min(options.guided, options.random)
            ahead = median(guided[n - 1] - other[n - 1] for guided, other in pairs)
            print(
                f"\n{strategy}: reaches the best of {options.random} candidates of {chance} after {needed:g} "
                f"evaluations (median); after {n} it is {ahead:+.1f} points against the best of {n} (median)"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
