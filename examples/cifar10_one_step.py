"""One-step pruning of a CIFAR-10 ResNet: search at a compute target, prune and compensate, retrain briefly, save."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path

import cifar_data
import torch
from cifar10_iterative import ARCHITECTURES, accuracy
from torch import nn

import channelwise as cw
from channelwise.recovery.distillation import kd

log = logging.getLogger("cifar10_one_step")


def retrain(
    model: nn.Module, teacher: nn.Module, images: cifar_data.Images, epochs: int, lr: float, batch: int = 128
) -> None:
    """Retraining that keeps a good start: mostly the dense network's answers, a low peak of the learning rate.

    SGD with Nesterov momentum, one cycle with a short rise, distillation at temperature 4 with nine tenths of the loss.
    """
    device = images.labels.device
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = epochs * -(-len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=lr,
        total_steps=max(steps, 2),
        pct_start=max(0.1, 2 / max(steps, 2)),
        div_factor=10,
        final_div_factor=100,
    )
    teacher.eval()
    done, start, reported = 0, time.perf_counter(), 0.0
    for epoch in range(epochs):
        model.train()
        for x, y in images.batches(batch, augment=True):
            with torch.autocast(device.type, dtype=torch.bfloat16):
                with torch.no_grad():
                    wanted = teacher(x)
                answer = model(x)
            answer = answer.float()
            loss = 0.9 * kd(answer, wanted.float(), 4.0) + 0.1 * nn.functional.cross_entropy(answer, y)
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
    model.eval()


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    cifar_data.add_options(parser)
    parser.add_argument("--checkpoint", type=Path, required=True, help="state dict of the dense network")
    parser.add_argument("--arch", choices=sorted(ARCHITECTURES), default="resnet20")
    parser.add_argument("--ratio", type=float, default=0.5, help="share of MACs removed")
    parser.add_argument("--num-subnet", type=int, default=100, help="candidates to evaluate")
    parser.add_argument("--epochs", type=int, default=1, help="epochs of retraining")
    parser.add_argument("--lr", type=float, default=0.02, help="peak learning rate")
    parser.add_argument("--calibration-images", type=int, default=1000, help="training images for repair")
    parser.add_argument("--score-images", type=int, default=1000, help="training images held out for scoring")
    parser.add_argument("--workers", type=int, help="processes that evaluate candidates")
    parser.add_argument("--strategy", default="evolution", help="how candidates are chosen")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    start = time.perf_counter()

    training, test = cifar_data.load(options.data)
    scored = training[len(training) - options.score_images :].to(device)
    training = training[: min(len(training) - options.score_images, options.limit_train or len(training))].to(device)
    test = test[: options.limit_test or len(test)].to(device)
    calibration = list(training[: options.calibration_images].batches(250))
    inputs = torch.zeros(1, 3, 32, 32, device=device)
    model = ARCHITECTURES[options.arch]()
    model.load_state_dict(torch.load(options.checkpoint, map_location="cpu", weights_only=True))
    model.to(device, memory_format=torch.channels_last).eval()

    def line(name: str, model: nn.Module) -> str:
        macs = cw.trace(model, inputs, verify=False).macs()
        params = sum(p.numel() for p in model.parameters())
        return f"| {name} | {macs / 1e6:.2f} M | {params:,} | {accuracy(model, test):.2f} % |"

    lines = [line("dense", model)]
    method = cw.OneStep(cw.trace(model, inputs), cw.Repair(calibration), folder=options.output / ".vai")
    target = cw.Target(macs=1 - options.ratio)
    method.search(
        target,
        cw.Evaluation(accuracy, (scored,)),
        options=cw.SearchOptions(options.num_subnet, options.strategy, seed=options.seed),
        where=cw.Where(workers=options.workers),
    )
    searched = time.perf_counter() - start
    slim = method.prune(target)
    lines.append(line(f"{options.ratio:.0%} removed, compensated", slim))
    log.info(lines[-1])
    if options.epochs:
        retrain(slim, model, training, options.epochs, options.lr)
        lines.append(line(f"retrained, {options.epochs} epoch(s)", slim))

    cw.save(slim, options.output / "one_step.safetensors")
    reloaded = cw.load(ARCHITECTURES[options.arch]().to(device), options.output / "one_step.safetensors").eval()
    if accuracy(reloaded, test) != accuracy(slim, test):
        log.error("the reloaded model differs from the saved one")
        return 1
    seconds = time.perf_counter() - start
    print(
        f"\n{options.arch}, {len(test):,} test images, {options.num_subnet} candidates scored on {len(scored):,} "
        f"held-out training images,\n{options.calibration_images:,} calibration images, seed {options.seed}; search "
        f"{searched:.0f} s of {seconds:.0f} s on {device.type} in all\n"
    )
    print("| model | MACs | parameters | test accuracy |")
    print("|---|--:|--:|--:|")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
