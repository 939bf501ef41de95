"""How many evaluations a guided search saves: best score after n candidates, against random search, over several seeds.

ResNet-20 on CIFAR-10 at a share of its MACs. A candidate's score is its accuracy on held-out training images after
batch norms were re-estimated on other training images; weights are not re-fitted. "random" and "default" choose
channels by the same ranking, so only the widths are searched; "random:l1" chooses them by L1 norm, as other tools do.
Every evaluation is kept in the output folder: an interrupted run goes on.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median

import cifar
import torch
from measuring import head, row

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
    parser = cifar.options(__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="state dict of the dense network")
    parser.add_argument("--ratio", type=float, default=0.5, help="share of MACs removed")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--random", type=int, default=200, help="candidates of a random search")
    parser.add_argument("--guided", type=int, default=100, help="candidates of a guided search")
    parser.add_argument("--strategies", nargs="+", default=["random", "random:l1", "default"])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("search-output"))
    options = parser.parse_args()

    labelled, scored, _ = cifar.load(options.data, options.images)
    calibration = [x for x, _ in labelled]
    model = cifar.network("resnet20", options.checkpoint)

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
                eval_fn=cifar.accuracy,
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
    print(*head("n:", *(f"{name}:" for name in curves)), sep="\n")
    for n in SHOWN:
        cells = [
            f"{median(c[n - 1] for c in runs):.1f}" if all(len(c) >= n for c in runs) else ""
            for runs in curves.values()
        ]
        print(row(n, *cells))
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
