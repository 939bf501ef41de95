"""Once-for-all on CIFAR-10: train a supernet with the sandwich rule, search it, extract and finetune three budgets.

One process, or several: ``torchrun --nproc-per-node 2 examples/cifar10_ofa.py ...``. An interrupted training goes on
with ``--resume``.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import cifar_data
import torch
import torch.distributed as dist
from cifar10_iterative import ARCHITECTURES, accuracy
from cifar10_one_step import retrain
from torch import nn

import channelwise as cw
from channelwise.recovery.distillation import kd
from pytorch_nndct import OFAPruner

log = logging.getLogger("cifar10_ofa")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of train.npz and test.npz, or for torchvision")
    parser.add_argument("--checkpoint", type=Path, required=True, help="state dict of the dense network")
    parser.add_argument("--arch", choices=sorted(ARCHITECTURES), default="resnet20")
    parser.add_argument("--expand-ratio", type=float, nargs="+", default=[0.5, 0.625, 0.75, 0.875, 1])
    parser.add_argument("--channel-divisible", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=8, help="epochs of supernet training")
    parser.add_argument("--steps", type=int, help="stop the training after so many steps (to go on with --resume)")
    parser.add_argument("--batch", type=int, default=128, help="images of a step, of all processes together")
    parser.add_argument("--lr", type=float, default=0.05, help="peak learning rate")
    parser.add_argument("--random", type=int, default=2, help="random subnets of a step")
    parser.add_argument("--save-every", type=int, default=100, help="steps between checkpoints")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in the output folder")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.35, 0.5, 0.7], help="shares of MACs kept")
    parser.add_argument("--iterations", type=int, default=5, help="generations of the search")
    parser.add_argument("--finetune", type=int, default=1, help="epochs of finetuning of each budget")
    parser.add_argument("--calibration-images", type=int, default=1000, help="training images for batch norms")
    parser.add_argument("--score-images", type=int, default=1000, help="training images held out for scoring")
    parser.add_argument("--limit-train", type=int, help="use only so many training images (smoke tests)")
    parser.add_argument("--limit-test", type=int, help="use only so many test images (smoke tests)")
    parser.add_argument("--output", type=Path, default=Path("cifar10-output"), help="folder for everything written")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def train(
    net: nn.Module, pruner: OFAPruner, teacher: nn.Module, images: cifar_data.Images, options: argparse.Namespace
) -> bool:
    """The sandwich rule, every subnet learning from the dense network. False if ``--steps`` ended it early."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = images.labels.device
    mine, batch = images[rank::world], options.batch // world
    steps = options.epochs * -(-len(images[::world]) // batch)
    optimizer = torch.optim.SGD(net.parameters(), lr=options.lr, momentum=0.9, nesterov=True, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=options.lr, total_steps=max(steps, 2), pct_start=0.1, div_factor=10, final_div_factor=100
    )
    path = options.output / "training.pt"
    parts: dict[str, Any] = {"net": net, "optimizer": optimizer, "schedule": schedule}
    done = load(path, parts, device) if options.resume else 0
    start, reported, before = time.perf_counter(), 0.0, done
    step = 0
    for epoch in range(options.epochs):
        # Order and augmentation depend on the epoch alone, so a resumed training sees the same batches.
        torch.manual_seed(1000 * options.seed + 10 * epoch + rank)
        for x, y in mine.batches(batch, augment=True):
            step += 1
            if step <= done:
                continue
            net.train()
            optimizer.zero_grad()
            with torch.autocast(device.type, dtype=torch.bfloat16), torch.no_grad():
                wanted = teacher(x).float()
            for subnet, _ in cw.sandwich(pruner, net, options.random, step=step):
                with torch.autocast(device.type, dtype=torch.bfloat16):
                    answer = subnet(x).float()
                loss = 0.9 * kd(answer, wanted, 4.0) + 0.1 * nn.functional.cross_entropy(answer, y)
                loss.backward()
            nn.utils.clip_grad_value_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            elapsed = time.perf_counter() - start
            if rank == 0 and (elapsed - reported > 20 or step == steps):
                reported = elapsed
                left = elapsed / (step - before) * (steps - step)
                log.info("epoch %d/%d, step %d/%d, %.0f s left", epoch + 1, options.epochs, step, steps, left)
            if rank == 0 and (step % options.save_every == 0 or step == steps):
                save(path, parts, step)
            if options.steps is not None and step == options.steps:
                if rank == 0:
                    save(path, parts, step)
                return False
    return True


def save(path: Path, parts: dict[str, Any], step: int) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"step": step, **{name: part.state_dict() for name, part in bare(parts).items()}}, f"{path}.new")
    os.replace(f"{path}.new", path)


def load(path: Path, parts: dict[str, Any], device: torch.device) -> int:
    """Steps done; 0 if there is no checkpoint yet."""
    if not path.exists():
        return 0
    state = torch.load(path, map_location=device, weights_only=True)
    for name, part in bare(parts).items():
        part.load_state_dict(state[name])
    log.info("going on after step %d", state["step"])
    return int(state["step"])


def bare(parts: dict[str, Any]) -> dict[str, Any]:
    """Without DistributedDataParallel, so that any number of processes can go on."""
    return {name: getattr(part, "module", part) for name, part in parts.items()}


def evaluate(
    pruner: OFAPruner,
    supernet: nn.Module,
    teacher: nn.Module,
    data: tuple[cifar_data.Images, cifar_data.Images, cifar_data.Images],
    options: argparse.Namespace,
) -> list[str]:
    """Subnets of all sizes, the search, three budgets finetuned: rows of the table."""
    training, scored, test = data
    calibration = list(training[: options.calibration_images].batches(250))

    def row(name: str, static: nn.Module, macs: float, params: float, after: str = "") -> str:
        return f"| {name} | {macs:.2f} M | {params * 1e6:,.0f} | {accuracy(static, test):.2f} % | {after} |"

    def extracted(setting: Any) -> tuple[nn.Module, float, float]:
        static, _, macs, params = pruner.get_static_subnet(supernet, setting)
        return cw.recovery.recalibrate(static.eval(), calibration), macs, params

    rows = []
    for mode, seed in (("max", None), ("min", None), ("random", 1), ("random", 2)):
        _, setting = pruner.sample_subnet(supernet, mode, seed=seed)
        rows.append(row(f"subnet, {mode}", *extracted(setting)))
        log.info(rows[-1])
    full = float(pruner.search_space.macs(pruner.search_space.maximum)) / 1e6
    front = pruner.run_evolutionary_search(
        supernet, None, (), accuracy, (scored,), "acc1", "max",
        min_flops=(min(options.budgets) - 0.1) * full, max_flops=max(options.budgets) * full, flops_step=full / 40,
        iteration=options.iterations, loader=calibration, seed=options.seed,
    )  # fmt: skip
    pruner.save_subnet_config(front, options.output / "front.json")
    print("\n| MACs | score of the search |\n|--:|--:|")
    for subnet in front.values():
        print(f"| {subnet['macs']:.2f} M | {subnet['acc1']:.1f} % |")
    for budget in options.budgets:
        fitting = [subnet for subnet in front.values() if subnet["macs"] <= budget * full]
        if not fitting:
            log.warning("no subnet was found below %.0f %% of the MACs", 100 * budget)
            continue
        static, macs, params = extracted(max(fitting, key=lambda subnet: subnet["acc1"])["subnet_setting"])
        name = f"searched, {budget:.0%} of the MACs"
        rows.append(row(name, static, macs, params))
        if options.finetune:
            retrain(static, teacher, training, options.finetune, 0.01)
            rows[-1] = rows[-1][: -len("|  |")] + f"| {accuracy(static, test):.2f} % |"
        torch.save(static.state_dict(), options.output / f"subnet_{budget:.2f}.pt")
        log.info(rows[-1])
    return rows


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    several = "RANK" in os.environ
    if several:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
    start = time.perf_counter()

    training, test = cifar_data.load(options.data)
    scored = training[len(training) - options.score_images :].to(device)
    training = training[: min(len(training) - options.score_images, options.limit_train or len(training))].to(device)
    test = test[: options.limit_test or len(test)].to(device)
    teacher = ARCHITECTURES[options.arch]()
    teacher.load_state_dict(torch.load(options.checkpoint, map_location="cpu", weights_only=True))
    teacher.to(device, memory_format=torch.channels_last).eval()

    pruner = OFAPruner(teacher, torch.zeros(1, 3, 32, 32, device=device), folder=options.output / ".vai")
    supernet = pruner.ofa_model(options.expand_ratio, options.channel_divisible, auto_add_excludes=False)
    log.info("%r", pruner.search_space)
    ids = [device.index] if device.type == "cuda" else None
    net = nn.parallel.DistributedDataParallel(supernet, device_ids=ids) if several else supernet
    finished = train(net, pruner, teacher, training, options)
    trained = time.perf_counter() - start
    if finished and (not several or dist.get_rank() == 0):
        rows = evaluate(pruner, supernet, teacher, (training, scored, test), options)
        seconds = time.perf_counter() - start
        print(
            f"\n{options.arch}, {len(test):,} test images, supernet trained for {options.epochs} epoch(s) of "
            f"{len(training):,} images;\ntraining {trained:.0f} s of {seconds:.0f} s on {device.type} in all\n"
        )
        print("| network | MACs | parameters | supernet's weights | finetuned |\n|---|--:|--:|--:|--:|")
        dense = float(pruner.search_space.params(pruner.search_space.full)) / 1e6
        macs = float(pruner.search_space.macs(pruner.search_space.full)) / 1e6
        print(f"| dense | {macs:.2f} M | {dense * 1e6:,.0f} | {accuracy(teacher, test):.2f} % |  |")
        print("\n".join(rows))
    if several:
        dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
