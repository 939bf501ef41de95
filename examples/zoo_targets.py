"""Pruned ResNet-50, Inception v3, MobileNetV2 and YOLOv5m at the compute of published results, each one checked.

For every row: the MACs against the published figure, the slim model against the sparse one (a subnet of once-for-all
against what its supernet runs), and a training step including auxiliary heads. Without ``--weights`` networks have
random weights: the rows are about compute and correctness then, not about accuracy.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from yolov5 import yolov5m

import channelwise as cw
from pytorch_nndct import IterativePruningRunner, OFAPruner, OneStepPruningRunner

log = logging.getLogger("zoo_targets")


@dataclass(frozen=True)
class Network:
    """A network, the image size of its published figures, and the size that is enough to compare candidates at."""

    build: Callable[[], nn.Module]
    pixels: int
    quick_pixels: int


@dataclass(frozen=True)
class Row:
    """A published result: the ratio in its name is the share of MACs kept."""

    network: str
    method: str
    ratio: float
    macs: float


NETWORKS = {
    "resnet50": Network(lambda: torchvision.models.resnet50(weights=None), 224, 64),
    "inception_v3": Network(
        lambda: torchvision.models.inception_v3(weights=None, init_weights=False, aux_logits=True), 299, 95
    ),
    "mobilenet_v2": Network(lambda: torchvision.models.mobilenet_v2(weights=None), 224, 64),
    "yolov5m": Network(yolov5m, 640, 64),
}
ROWS = [
    Row("resnet50", "iterative", 0.75, 3.06e9),
    Row("resnet50", "one_step", 0.75, 3.09e9),
    Row("resnet50", "iterative", 0.5, 2.06e9),
    Row("resnet50", "one_step", 0.5, 2.07e9),
    Row("inception_v3", "iterative", 0.65, 3.15e9),
    Row("inception_v3", "one_step", 0.65, 3.12e9),
    Row("mobilenet_v2", "iterative", 0.75, 226.42e6),
    Row("mobilenet_v2", "one_step", 0.76, 228.47e6),
    Row("resnet50", "ofa", 0.77, 3.15e9),
    Row("resnet50", "ofa", 0.54, 2.23e9),
    Row("mobilenet_v2", "ofa", 0.74, 222.46e6),
    Row("yolov5m", "iterative", 0.8, 17.09e9),
    Row("yolov5m", "ofa", 0.8, 17.10e9),
]


def untrained_but_alive(model: nn.Module, pixels: int) -> None:
    """Batch norms that differ by channel and fit random images, so that signals neither die out nor saturate."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, 0.0, 0.2, generator=generator)
    cw.recovery.recalibrate(model, [torch.randn(16, 3, pixels, pixels, generator=generator)])


def outputs(output: object) -> list[Tensor]:
    """The tensors of an output: Inception v3 returns two while it trains, YOLOv5 maps, and boxes before them."""
    if isinstance(output, Tensor):
        return [output]
    return [tensor for part in output for tensor in outputs(part)] if isinstance(output, (tuple, list)) else []


def agreement(model: nn.Module, images: Tensor, wanted: Tensor) -> float:
    """How near the outputs are to the dense network's: 1 for the same, smaller for others. Needs no labels."""
    with torch.inference_mode():
        return 1 - float(F.mse_loss(outputs(model(images))[0], wanted) / wanted.var())


def trains(model: nn.Module, images: Tensor) -> bool:
    """Whether one step of SGD gives every parameter a finite gradient and keeps all of them finite."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    labels = torch.arange(len(images)) % 10
    losses = [F.cross_entropy(t, labels) if t.dim() == 2 else t.square().mean() for t in outputs(model(images))]
    loss = torch.stack(losses).sum()
    loss.backward()
    reached = all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    optimizer.step()
    model.eval()
    return reached and all(bool(p.isfinite().all()) for p in model.parameters())


def difference(one: nn.Module, other: nn.Module, images: Tensor) -> float:
    """The largest difference of two models' outputs, relative to the largest output."""
    with torch.inference_mode():
        a, b = outputs(one.eval()(images))[0], outputs(other.eval()(images))[0]
    return float((a - b).abs().max() / a.abs().max())


def pruned(row: Row, model: nn.Module, share: float, options: argparse.Namespace) -> tuple[nn.Module, nn.Module]:
    """The slim model of a row, and another one that has to compute the same."""
    network = NETWORKS[row.network]
    generator = torch.Generator().manual_seed(0)
    small = torch.randn(4, 3, network.quick_pixels, network.quick_pixels, generator=generator)
    inputs = torch.randn(1, 3, network.pixels, network.pixels, generator=generator)
    with torch.inference_mode():
        wanted = outputs(model(small))[0]
    folder = options.output / ".vai"
    if row.method == "iterative":
        iterative = IterativePruningRunner(model, inputs, folder=folder, quiet=True)
        iterative.ana(agreement, args=(small, wanted))
        return with_sparse(network, iterative.prune(removal_ratio=1 - share, mode="slim"))
    if row.method == "ofa":
        pruner = OFAPruner(model, inputs, folder=folder, quiet=True)
        supernet = pruner.ofa_model([0.5, 0.75, 1], 8).eval()
        found = pruner.run_evolutionary_search(
            supernet, None, (), agreement, (small, wanted), "agreement", "max", 0.995 * row.macs / 1e6,
            1.005 * row.macs / 1e6, 1, parent_popu_size=options.num_subnet, iteration=0, loader=[small],
        )  # fmt: skip
        best = max(found.values(), key=lambda subnet: subnet["agreement"])["subnet_setting"]
        return pruner.get_static_subnet(supernet, best)[0], pruner.set_subnet(supernet, best)
    runner = OneStepPruningRunner(model, inputs, folder=folder, quiet=True)
    runner.search(
        num_subnet=options.num_subnet, removal_ratio=1 - share, eval_fn=agreement, eval_args=(small, wanted),
        loader=[small], compensate=False,
    )  # fmt: skip
    return with_sparse(network, runner.prune(removal_ratio=1 - share))


def with_sparse(network: Network, slim: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The slim model, and the original one with zeros in the place of removed channels."""
    sparse = network.build()
    sparse.load_state_dict(slim.sparse_state_dict())  # type: ignore[operator]
    return slim, sparse


def check(row: Row, model: nn.Module, options: argparse.Namespace) -> tuple[str, bool]:
    """A line of the table, and whether the row is met."""
    network = NETWORKS[row.network]
    images = torch.randn(2, 3, network.pixels, network.pixels, generator=torch.Generator().manual_seed(1))
    dense_macs = cw.trace(model, images[:1], verify=False).macs()
    start = time.perf_counter()
    slim, same = pruned(row, model, row.macs / dense_macs, options)
    seconds = time.perf_counter() - start
    macs = cw.trace(slim, images[:1], verify=False).macs()
    apart = difference(slim, same, images)
    trained = trains(slim, images)
    params = sum(p.numel() for p in slim.parameters())
    met = abs(macs / row.macs - 1) <= 0.01 and apart <= 1e-4 and trained
    name = f"{row.network}-{row.method}-{row.ratio:g}"
    return (
        f"| {name} | {dense_macs / 1e9:.3f} G | {row.macs / 1e9:.3f} G | {macs / 1e9:.3f} G "
        f"| {100 * (macs / row.macs - 1):+.2f} % | {params / 1e6:.2f} M | {apart:.0e} | {'yes' if trained else 'NO'} "
        f"| {seconds:.0f} s |",
        met,
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=sorted(NETWORKS), default=list(NETWORKS))
    methods = sorted({row.method for row in ROWS})
    parser.add_argument("--methods", nargs="+", choices=methods, default=methods)
    parser.add_argument(
        "--weights", nargs="+", default=[], metavar="NETWORK=FILE", help="state dicts, random otherwise"
    )
    parser.add_argument("--num-subnet", type=int, default=4, help="candidates of every one-step search")
    parser.add_argument("--output", type=Path, default=Path("zoo-output"), help="folder for results files")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    files = dict(given.split("=", 1) for given in options.weights)

    lines, failed = [], []
    for name in options.networks:
        torch.manual_seed(0)
        model = NETWORKS[name].build()
        if name in files:
            model.load_state_dict(torch.load(files[name], map_location="cpu", weights_only=True))
        else:
            untrained_but_alive(model, NETWORKS[name].quick_pixels)
        model.eval()
        for row in ROWS:
            if row.network == name and row.method in options.methods:
                line, met = check(row, model, options)
                print(line, flush=True)
                lines.append(line)
                if not met:
                    failed.append(f"{row.network}-{row.method}-{row.ratio:g}")
    print("\n| row | dense MACs | published | pruned MACs | difference | parameters | slim vs sparse | trains | time |")
    print("|---|--:|--:|--:|--:|--:|--:|---|--:|")
    print("\n".join(lines))
    if failed:
        print("not met:", ", ".join(failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
