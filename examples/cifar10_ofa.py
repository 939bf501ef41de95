"""Once-for-all on CIFAR-10: train a supernet with the sandwich rule, search it, extract and finetune three budgets.

One process, or several: ``torchrun --nproc-per-node 2 examples/cifar10_ofa.py ...``. An interrupted training goes on
with ``--resume``; ``--only train`` and ``--only evaluate`` do the two halves in separate calls.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cifar_data
import torch
import torch.distributed as dist
from cifar10_iterative import ARCHITECTURES, accuracy
from cifar10_iterative import train as train_dense
from cifar10_one_step import retrain
from torch import nn

import channelwise as cw
from channelwise.recovery.distillation import kd
from pytorch_nndct import OFAPruner

log = logging.getLogger("cifar10_ofa")

# What makes the supernet of a checkpoint, and what a training that goes on must not change either.
STRUCTURE = ("arch", "expand_ratio", "channel_divisible")
TRAINING = ("epochs", "batch", "lr", "random", "soft", "limit_train", "seed")
# The budgets' subnets have seen their weights trained already: a low rate.
FINETUNING_RATE = 0.01


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    cifar_data.add_options(parser)
    parser.add_argument("--checkpoint", type=Path, help="state dict of the dense network; without it one is trained")
    parser.add_argument("--dense-epochs", type=int, default=10, help="epochs of that training")
    parser.add_argument("--arch", choices=sorted(ARCHITECTURES), default="resnet20")
    parser.add_argument("--expand-ratio", type=float, nargs="+", default=[0.5, 0.625, 0.75, 0.875, 1])
    parser.add_argument("--channel-divisible", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=8, help="epochs of supernet training")
    parser.add_argument("--steps", type=int, help="stop the training after so many steps (to go on with --resume)")
    parser.add_argument("--batch", type=int, default=128, help="images of a step, of all processes together")
    parser.add_argument("--lr", type=float, default=0.05, help="peak learning rate")
    parser.add_argument("--random", type=int, default=2, help="random subnets of a step")
    parser.add_argument(
        "--soft", choices=("teacher", "max"), default="teacher", help="whom the smaller subnets imitate"
    )
    parser.add_argument("--amp", action="store_true", help="train in bfloat16 where autocast allows it")
    parser.add_argument(
        "--save-every", type=int, default=100, help="steps between checkpoints; epochs end with one, too"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in the output folder")
    parser.add_argument(
        "--only", choices=("train", "evaluate"), help="one half: evaluate takes the checkpoint as it is"
    )
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.4, 0.5, 0.7], help="shares of MACs kept")
    parser.add_argument("--population", type=int, default=16, help="first generation of the search")
    parser.add_argument("--iterations", type=int, default=5, help="generations after it, of twelve subnets each")
    parser.add_argument("--workers", type=int, help="processes that evaluate subnets")
    parser.add_argument("--finetune", type=int, default=1, help="epochs of finetuning of each budget")
    parser.add_argument("--calibration-images", type=int, default=1000, help="training images for batch norms")
    parser.add_argument("--score-images", type=int, default=1000, help="training images held out for scoring")
    return parser.parse_args(argv)


def train(
    net: nn.Module, pruner: OFAPruner, teacher: nn.Module, images: cifar_data.Images, options: argparse.Namespace
) -> bool:
    """The sandwich rule. The largest subnet learns from labels and the dense network, the others from ``--soft``, too.

    Every random number depends on the seed, the step and the process alone, so that a resumed training goes on exactly
    as one that was never interrupted. Of every batch each process takes its share; incomplete batches are left out.

    Returns:
        False if ``--steps`` ended it early.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = images.labels.device
    epoch_steps = len(images) // options.batch
    steps = options.epochs * epoch_steps
    optimizer = torch.optim.SGD(net.parameters(), lr=options.lr, momentum=0.9, nesterov=True, weight_decay=1e-4)
    path = options.output / "training.pt"
    first = load(path, net, optimizer, options, device) if options.resume else 0
    last = min(steps, options.steps or steps)
    start = reported = time.perf_counter()
    net.train()
    for step in range(first, last):
        epoch, place = divmod(step, epoch_steps)
        if step == first or place == 0:
            shuffle = torch.Generator().manual_seed(1_000_000 * options.seed + epoch)
            order = torch.randperm(len(images), generator=shuffle).to(device)
        torch.manual_seed(1_000_000 * options.seed + 64 * step + rank)
        chosen = order[place * options.batch : (place + 1) * options.batch][rank::world]
        x, y = images.batch(chosen, augment=True)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps, options.lr)
        optimizer.zero_grad()
        with torch.no_grad():
            soft = logits(teacher, x, options.amp)
        for number, (subnet, _) in enumerate(cw.sandwich(pruner, net, options.random, step=step)):
            answer = logits(subnet, x, options.amp)
            loss = 0.9 * kd(answer, soft, 4.0) + 0.1 * nn.functional.cross_entropy(answer, y)
            loss.backward()
            if number == 0 and options.soft == "max":
                soft = answer.detach()
        nn.utils.clip_grad_value_(net.parameters(), 1.0)
        optimizer.step()
        done = step + 1
        if rank == 0 and (time.perf_counter() - reported > 20 or done == last):
            reported = time.perf_counter()
            left = (reported - start) / (done - first) * (last - done)
            log.info("epoch %d/%d, step %d/%d, %.0f s left", epoch + 1, options.epochs, done, steps, left)
        if rank == 0 and (done % options.save_every == 0 or done % epoch_steps == 0 or done == last):
            save(path, net, optimizer, done, options)
    return max(first, last) >= steps


def logits(net: nn.Module, x: torch.Tensor, amp: bool) -> torch.Tensor:
    """Answers (N, classes) in float32."""
    with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=amp):
        answer: torch.Tensor = net(x)
    return answer.float()


def rate(step: int, steps: int, peak: float) -> float:
    """A short linear rise to the peak, then half a cosine down to nothing."""
    warm = max(steps // 10, 1)
    if step < warm:
        return peak * (step + 1) / warm
    return 0.5 * peak * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))


def save(path: Path, net: nn.Module, optimizer: torch.optim.Optimizer, step: int, options: argparse.Namespace) -> None:
    """Whole or not at all, and without DistributedDataParallel: any number of processes can go on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"step": step, "net": getattr(net, "module", net).state_dict(), "optimizer": optimizer.state_dict()}
    torch.save({**state, "options": {name: getattr(options, name) for name in STRUCTURE + TRAINING}}, f"{path}.new")
    os.replace(f"{path}.new", path)


def load(
    path: Path,
    net: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    options: argparse.Namespace,
    device: torch.device,
) -> int:
    """The number of steps done; 0 if there is no checkpoint yet."""
    if not path.exists():
        return 0
    state = torch.load(path, map_location=device, weights_only=True)
    for name in STRUCTURE if optimizer is None else STRUCTURE + TRAINING:
        before = state.get("options", {}).get(name, getattr(options, name))
        if getattr(options, name) != before:
            flag = name.replace("_", "-")
            raise SystemExit(f"{path} was trained with --{flag} {before}, not {getattr(options, name)}: give the same.")
    getattr(net, "module", net).load_state_dict(state["net"])
    if optimizer is not None:
        optimizer.load_state_dict(state["optimizer"])
    log.info("going on after step %d", state["step"])
    return int(state["step"])


def dense_network(options: argparse.Namespace, images: cifar_data.Images) -> nn.Module:
    """The network that the supernet is made of and learns from; trained here if there is no checkpoint of it."""
    device = images.labels.device
    net = ARCHITECTURES[options.arch]()
    path = options.checkpoint or options.output / f"{options.arch}.pt"
    if options.checkpoint is None and not path.exists():
        if dist.is_initialized():
            raise SystemExit(
                "There is no dense network yet: train it in one process first, with --only train --epochs 0."
            )
        train_dense(net.to(device, memory_format=torch.channels_last), images, options.dense_epochs, 0.1)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(net.state_dict(), path)
    net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return net.to(device, memory_format=torch.channels_last).eval()


def evaluate(
    pruner: OFAPruner,
    supernet: nn.Module,
    teacher: nn.Module,
    data: tuple[cifar_data.Images, cifar_data.Images, cifar_data.Images],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Subnets of all sizes, the front that a search finds, three budgets finetuned.

    Arguments:
        data: images for calibration and finetuning, for the scores of the search, and for the accuracies reported.
    """
    training, scored, test = data
    calibration = list(training[: options.calibration_images].batches(250))
    space = pruner.search_space
    full = float(space.macs(space.full))

    def row(name: str, net: nn.Module, macs: float, params: float) -> dict[str, Any]:
        found = {"model": name, "macs": macs, "params": round(params), "accuracy": accuracy(net, test)}
        log.info("%s: %.2f M MACs, %.2f %%", name, macs / 1e6, found["accuracy"])
        return found

    def extracted(setting: Any) -> tuple[nn.Module, float, float]:
        static, _, macs, params = pruner.get_static_subnet(supernet, setting)
        return cw.recovery.recalibrate(static.eval(), calibration), macs * 1e6, params * 1e6

    rows = [row("dense", teacher, full, float(space.params(space.full)))]
    for mode, seed in (("max", None), ("min", None), ("random", 1), ("random", 2), ("random", 3)):
        _, setting = pruner.sample_subnet(supernet, mode, seed=seed)
        rows.append(row(f"subnet, {mode}", *extracted(setting)))
    front = pruner.run_evolutionary_search(
        supernet, eval_fn=accuracy, eval_args=(scored,), evaluation_metric="acc1", min_or_max_metric="max",
        min_flops=0.8 * min(options.budgets) * full / 1e6, max_flops=max(options.budgets) * full / 1e6,
        flops_step=max(1, round(full / 40e6)), parent_popu_size=options.population, iteration=options.iterations,
        loader=calibration, workers=options.workers, seed=options.seed,
    )  # fmt: skip
    pruner.save_subnet_config(front, options.output / "front.json")
    for budget in options.budgets:
        fitting = [subnet for subnet in front.values() if subnet["macs"] * 1e6 <= budget * full]
        if not fitting:
            log.warning("no subnet was found below %.0f %% of the MACs", 100 * budget)
            continue
        # Scores on few images are noisy: a subnet that uses its budget comes first.
        best = max(fitting, key=lambda subnet: (subnet["macs"] * 1e6 >= 0.9 * budget * full, subnet["acc1"]))
        static, macs, params = extracted(best["subnet_setting"])
        found = row(f"searched, {budget:.0%} of the MACs", static, macs, params)
        if options.finetune:
            torch.manual_seed(options.seed)
            retrain(static, teacher, training, options.finetune, FINETUNING_RATE)
            found["finetuned"] = accuracy(static, test)
        rows.append(found)
        torch.save(static.state_dict(), options.output / f"subnet_{budget:.2f}.pt")
    scores = [{name: subnet[name] for name in ("macs", "params", "acc1", "mode")} for subnet in front.values()]
    return {"rows": rows, "front": scores}


def show(rows: Sequence[dict[str, Any]], front: Sequence[dict[str, Any]]) -> None:
    """Two markdown tables."""
    print("| of the search: MACs | score on held-out images |\n|--:|--:|")
    for subnet in front:
        print(f"| {subnet['macs']:.2f} M | {subnet['acc1']:.1f} % |")
    print("\n| network | MACs | parameters | test accuracy | finetuned |\n|---|--:|--:|--:|--:|")
    for row in rows:
        after = f"{row['finetuned']:.2f} %" if "finetuned" in row else ""
        counts = f"{row['macs'] / 1e6:.2f} M | {row['params']:,}"
        print(f"| {row['model']} | {counts} | {row['accuracy']:.2f} % | {after} |")


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    several = "RANK" in os.environ
    main_process = os.environ.get("RANK", "0") == "0"
    level = logging.INFO if main_process else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    if several:
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        if options.batch % dist.get_world_size():
            raise SystemExit(f"--batch {options.batch} cannot be shared by {dist.get_world_size()} processes equally.")
    start = time.perf_counter()

    training, test = cifar_data.load(options.data)
    scored = training[len(training) - options.score_images :].to(device)
    training = training[: min(len(training) - options.score_images, options.limit_train or len(training))].to(device)
    test = test[: options.limit_test or len(test)].to(device)
    if len(training) < options.batch:
        raise SystemExit(f"--batch {options.batch} is more than the {len(training)} training images.")
    teacher = dense_network(options, training)

    pruner = OFAPruner(teacher, torch.zeros(1, 3, 32, 32, device=device), folder=options.output / ".vai")
    supernet = pruner.ofa_model(options.expand_ratio, options.channel_divisible, auto_add_excludes=False)
    log.info("%r", pruner.search_space)
    finished = True
    if options.only == "evaluate":
        if not load(options.output / "training.pt", supernet, None, options, device):
            raise SystemExit(f"There is no checkpoint in {options.output}: train first.")
    else:
        ids = [device.index] if device.type == "cuda" else None
        net = nn.parallel.DistributedDataParallel(supernet, device_ids=ids) if several else supernet
        finished = train(net, pruner, teacher, training, options)
    trained = time.perf_counter() - start
    if several:
        # The rest is the work of one process: re-estimating batch norms would wait for the others.
        dist.barrier()
        dist.destroy_process_group()
    if not finished or options.only == "train" or not main_process:
        return 0

    found = evaluate(pruner, supernet, teacher, (training, scored, test), options)
    seconds = time.perf_counter() - start
    summary = {**found, "arch": options.arch, "training_seconds": trained, "seconds": seconds}
    (options.output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(
        f"\n{options.arch}, {len(test):,} test images, supernet trained for {options.epochs} epoch(s) of "
        f"{len(training):,} images;\ntraining {trained:.0f} s of {seconds:.0f} s on {device.type} in this call\n"
    )
    show(found["rows"], found["front"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
