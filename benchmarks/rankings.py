"""Which channels to keep: accuracy of pruned CIFAR-10 ResNets by ranking, allocation and repair, without retraining.

Scores are on training images held out from everything else here; calibration images have labels for the gradient
rankings. The table is what the defaults were chosen by.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cifar
import torch
import torch.nn.functional as F
from cifar import accuracy
from measuring import head, row

import channelwise as cw
from channelwise import ranking
from channelwise.ranking import Fisher, RandomProjection, Reconstruction, Taylor
from channelwise.recovery import compensate_from_grams, recalibrate
from channelwise.statistics import gather


def main() -> None:
    parser = cifar.options(__doc__)
    parser.add_argument("--checkpoints", type=Path, nargs="+", required=True, help="resnet20.th and resnet56.th")
    parser.add_argument("--kept", type=float, nargs="+", default=[0.5, 0.3], help="shares of MACs kept")
    options = parser.parse_args()
    labelled, scored, _ = cifar.load(options.data, options.images)
    images = [x for x, _ in labelled]
    print("accuracy (%) after re-estimating batch norms / after re-fitting weights from the dense model's moments\n")
    print(*head("network", "kept:", "ranking", "uniform:", "global:"), sep="\n")
    for checkpoint in options.checkpoints:
        model = cifar.network(checkpoint.stem, checkpoint)
        graph = cw.trace(model, torch.zeros(1, 3, 32, 32))
        grams = gather(model, graph.structure, images)
        rankings: dict[str, Any] = {
            **{name: name for name in ("l1", "consumer_l2", "bn_scale", "fpgm")},
            "Taylor": Taylor(F.cross_entropy, labelled, quiet=True),
            "Fisher": Fisher(F.cross_entropy, labelled, quiet=True),
            "Fisher, no labels": Fisher(RandomProjection(), images, quiet=True),
            "Reconstruction": Reconstruction(grams=grams),
        }
        repairs: list[Callable[[Any, Any], Any]] = [
            lambda slim, selection: slim,
            lambda slim, selection: compensate_from_grams(slim, model, graph.structure, selection, grams),  # noqa: B023
        ]
        for kept in options.kept:
            for name, criterion in rankings.items():
                bound = ranking.bind(criterion, model, graph.structure)
                cells = []
                for allocation in ("uniform", "global"):
                    selection = graph.select(macs=kept, ranking=bound, allocation=allocation, channel_divisible=2)
                    scores = [
                        accuracy(recalibrate(repair(graph.slim(selection), selection), images), scored)
                        for repair in repairs
                    ]
                    cells.append(" / ".join(f"{score:.1f}" for score in scores))
                print(row(checkpoint.stem, f"{kept:g}", name, *cells), flush=True)


if __name__ == "__main__":
    main()
