"""Iterative pruning of a CIFAR-10 ResNet: analyse once, prune to 30 %, retrain, prune to 50 %, retrain, slim, save."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cifar_data
import torch
import torch.nn.functional as F
from cifar_mobilenet import mobilenet_v2
from cifar_resnet import resnet20, resnet56
from torch import nn

import channelwise as cw

log = logging.getLogger("cifar10_iterative")
ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "mobilenet_v2": mobilenet_v2,
    "resnet20": resnet20,
    "resnet56": resnet56,
}


@torch.inference_mode()
def accuracy(model: nn.Module, images: cifar_data.Images) -> float:
    """Share of right answers in percent."""
    model.eval()
    right = sum((model(x).argmax(1) == y).sum().item() for x, y in images.batches(500))
    return 100 * right / len(images)


def train(model: nn.Module, images: cifar_data.Images, epochs: int, lr: float, batch: int = 128) -> None:
    """SGD with Nesterov momentum and a one-cycle learning rate, in bfloat16 where autocast allows it."""
    device = images.labels.device
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = epochs * -(-len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=max(steps, 2))
    done, start, reported = 0, time.perf_counter(), 0.0
    for epoch in range(epochs):
        model.train()
        for x, y in images.batches(batch, augment=True):
            with torch.autocast(device.type, dtype=torch.bfloat16):
                loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            done += 1
            elapsed = time.perf_counter() - start
            if elapsed - reported > 10 or done == steps:
                reported = elapsed
                left = elapsed / done * (steps - done)
                log.info("epoch %d/%d, loss %.3f, %.0f s left", epoch + 1, epochs, loss.item(), left)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    cifar_data.add_options(parser)
    parser.add_argument("--checkpoint", type=Path, required=True, help="state dict of the dense network")
    parser.add_argument("--arch", choices=sorted(ARCHITECTURES), default="resnet20")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.3, 0.5], help="shares of MACs removed, rising")
    parser.add_argument("--epochs", type=int, default=1, help="epochs of retraining after each pruning")
    parser.add_argument("--lr", type=float, default=0.03, help="peak learning rate")
    parser.add_argument("--analysis-images", type=int, default=1000, help="training images held out for the analysis")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    build = ARCHITECTURES[options.arch]
    start = time.perf_counter()

    training, test = cifar_data.load(options.data)
    held_out = training[len(training) - options.analysis_images :].to(device)
    training = training[: min(len(training) - options.analysis_images, options.limit_train or len(training))].to(device)
    test = test[: options.limit_test or len(test)].to(device)
    state = torch.load(options.checkpoint, map_location="cpu", weights_only=True)
    inputs = torch.zeros(1, 3, 32, 32, device=device)

    def fresh(weights: dict[str, torch.Tensor]) -> nn.Module:
        model = build()
        model.load_state_dict(weights)
        return model.to(device, memory_format=torch.channels_last).eval()

    def line(name: str, model: nn.Module, before: str, after: float) -> str:
        macs = cw.trace(model, inputs, verify=False).macs()
        params = sum(p.numel() for p in model.parameters())
        return f"| {name} | {macs / 1e6:.2f} M | {params:,} | {before} | {after:.2f} % |"

    model = fresh(state)
    lines = [line("dense", model, "", accuracy(model, test))]
    log.info("dense: %s", lines[-1])
    for ratio in options.ratios:
        method = cw.Iterative(cw.trace(model, inputs), folder=options.output / ".vai")
        # Repeated only for another network: the second round reads the file of the first.
        method.ana(cw.Evaluation(accuracy, (held_out,)))
        sparse = method.prune(cw.Target(macs=1 - ratio), mode="sparse")
        before = accuracy(sparse, test)
        log.info("%.0f %% of the MACs removed: %.2f %% before retraining", 100 * ratio, before)
        train(sparse, training, options.epochs, options.lr)
        slim = cw.load(build().to(device), sparse.slim_state_dict()).eval()
        lines.append(line(f"{ratio:.0%} removed", slim, f"{before:.2f} %", accuracy(slim, test)))
        log.info(lines[-1])
        model = fresh(sparse.state_dict())

    cw.save(slim, options.output / "model.safetensors")
    reloaded = cw.load(build().to(device), options.output / "model.safetensors").eval()
    if accuracy(reloaded, test) != accuracy(slim, test):
        log.error("the reloaded model differs from the saved one")
        return 1
    seconds = time.perf_counter() - start

    epochs = f"{options.epochs} epoch(s) of {len(training):,} images"
    print(f"\n{options.arch}, {len(test):,} test images, {epochs} after each pruning,")
    print(f"analysis on {len(held_out):,} held-out training images, {seconds:.0f} s on {device.type} in all\n")
    print("| model | MACs | parameters | before retraining | test accuracy |")
    print("|---|--:|--:|--:|--:|")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
