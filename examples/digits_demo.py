"""Prune a network on handwritten digits in all three ways, up to saved slim models and a table."""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from digits import DigitsNet, Split, accuracy, digits, shifted, train
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import channelwise as cw
from channelwise.recovery.distillation import kd
from pytorch_nndct import IterativePruningRunner, OFAPruner, OneStepPruningRunner


@dataclass
class Demo:
    """The trained network, its data, and what the three methods made of it."""

    options: argparse.Namespace
    console: Console
    model: nn.Module
    training: Split
    held_out: Split
    test: Split
    models: dict[str, nn.Module] = field(default_factory=dict)
    before_retraining: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    step: int = 0

    @property
    def example(self) -> Tensor:
        """An input (1, 1, 8, 8)."""
        return self.test[0][:1]

    @property
    def folder(self) -> Path:
        """Where analyses and searches are kept."""
        return Path(self.options.output) / ".vai"

    def say(self, what: str) -> None:
        """Announce the next step."""
        self.step += 1
        self.console.print(f"[bold]{self.step}/{STEPS}[/] {what}")


STEPS = 10


def iterative(demo: Demo) -> float:
    """Analysis, pruning, retraining, a slim model saved and loaded. How far slim and sparse outputs are apart."""
    options = demo.options
    demo.say("iterative: analysing how much each group of channels matters")
    runner = IterativePruningRunner(demo.model, demo.example, folder=demo.folder)
    runner.ana(accuracy, args=(demo.held_out,), forced=True)
    plot_sensitivity(demo.folder / "DigitsNet.sens", options.output / "sensitivity.png")

    demo.say(f"removing {options.removal_ratio:.0%} of the MACs")
    sparse = runner.prune(removal_ratio=options.removal_ratio, mode="sparse")
    demo.before_retraining["iterative"] = accuracy(sparse, demo.test)

    demo.say("retraining with the removed channels held at zero")
    train(sparse, demo.training, options.retrain_epochs, lr=0.05)

    demo.say("slimming, saving, reloading into a fresh original network")
    slim = cw.load(DigitsNet(), sparse.slim_state_dict()).eval()
    cw.save(slim, options.output / "model.safetensors")
    reloaded = demo.models["iterative, reloaded"] = cw.load(DigitsNet(), options.output / "model.safetensors").eval()
    with torch.inference_mode():
        logits = {
            name: net.eval()(demo.test[0]) for name, net in [("sparse", sparse), ("slim", slim), ("file", reloaded)]
        }
    difference = (logits["sparse"] - logits["slim"]).abs().max().item() / logits["sparse"].abs().max().item()
    if difference > 1e-5:
        demo.problems.append(f"the slim model differs from the sparse one by {difference:.1e} relative")
    if not torch.equal(logits["slim"], logits["file"]):
        demo.problems.append("the reloaded model differs from the saved one")
    return difference


def one_step(demo: Demo) -> None:
    """A search without training, and a short retraining."""
    options = demo.options
    demo.say(f"one-step: searching {options.num_subnet} networks of the same compute, without training")
    runner = OneStepPruningRunner(demo.model, demo.example, folder=demo.folder)
    runner.search(
        num_subnet=options.num_subnet, removal_ratio=options.removal_ratio, eval_fn=accuracy,
        eval_args=(demo.held_out,), loader=list(demo.training[0].split(256)), seed=options.seed, forced=True,
    )  # fmt: skip
    slim = demo.models["one-step"] = runner.prune(removal_ratio=options.removal_ratio).eval()
    demo.before_retraining["one-step, weights re-fitted"] = accuracy(slim, demo.test)

    demo.say("retraining that one, for a third of the epochs")
    train(slim, demo.training, max(1, options.retrain_epochs // 3), lr=0.02)
    cw.save(slim, options.output / "one_step.safetensors")


def once_for_all(demo: Demo) -> list[dict[str, Any]]:
    """A supernet, trained once; the best subnet of every size, and that of half the MACs taken out."""
    options = demo.options
    demo.say("once-for-all: training one network that contains all the smaller ones")
    pruner = OFAPruner(demo.model, demo.example, folder=demo.folder)
    supernet = pruner.ofa_model(expand_ratio=[0.25, 0.5, 0.75, 1], channel_divisible=8)
    train_supernet(pruner, supernet, demo.model.eval(), demo.training, options.ofa_epochs)

    demo.say("searching the best of its subnets for every budget")
    calibration = list(demo.training[0].split(256))
    front = pruner.run_evolutionary_search(
        supernet, eval_fn=accuracy, eval_args=(demo.held_out,), evaluation_metric="accuracy", min_or_max_metric="max",
        flops_step=0.5, parent_popu_size=options.num_subnet, iteration=2, loader=calibration, seed=options.seed,
        forced=True,
    )  # fmt: skip
    pruner.save_subnet_config(front, options.output / "front.json")

    demo.say("taking out the one for the same budget; it is not trained again")
    space = pruner.search_space
    budget = (1 - options.removal_ratio) * float(space.macs(space.maximum)) / 1e6
    fitting = [subnet for subnet in front.values() if subnet["macs"] <= budget]
    best = max(fitting, key=lambda subnet: (subnet["accuracy"], subnet["macs"]))
    static, *_ = pruner.get_static_subnet(supernet, best["subnet_setting"])
    demo.models["once-for-all"] = cw.recovery.recalibrate(static.eval(), calibration)
    cw.save(static, options.output / "once_for_all.safetensors")
    return list(front.values())


def train_supernet(
    pruner: OFAPruner, supernet: nn.Module, teacher: nn.Module, split: Split, epochs: int, batch: int = 64
) -> None:
    """The sandwich rule: in every step the largest, the smallest and two random subnets imitate the trained network."""
    images, _ = split
    optimizer = torch.optim.SGD(supernet.parameters(), lr=0.02, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = epochs * (len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=max(steps, 2))
    supernet.train()
    for _ in range(epochs):
        order = torch.randperm(len(images))
        for chosen in order[: len(images) // batch * batch].split(batch):
            x = shifted(images[chosen])
            with torch.no_grad():
                soft = teacher(x)
            optimizer.zero_grad()
            for subnet, _ in cw.sandwich(pruner, supernet):
                kd(subnet(x), soft).backward()
            optimizer.step()
            schedule.step()


@torch.inference_mode()
def latencies_ms(models: list[nn.Module], images: Tensor, repeats: int = 30) -> list[float]:
    """Median times of one forward pass over a batch, in milliseconds; in turns, so that a busy machine hits all."""
    times = np.empty((repeats + 3, len(models)))
    for turn in range(repeats + 3):
        for i, model in enumerate(models):
            start = time.perf_counter()
            model(images)
            times[turn, i] = 1000 * (time.perf_counter() - start)
    return np.median(times[3:], axis=0).tolist()


def cost(model: nn.Module, example: Tensor) -> tuple[float, int]:
    """MACs for one image, and parameters."""
    return cw.trace(model, example, verify=False).macs(), sum(p.numel() for p in model.parameters())


def plot_sensitivity(results: Path, picture: Path) -> None:
    """Draw the scores that the analysis stored, one line a group, if matplotlib is there."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    records = [json.loads(line) for line in results.read_text().splitlines()]
    scores = [record for record in records if record.get("kind") == "evaluation"]
    baseline = next(record["score"] for record in scores if "group" not in record)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for group in dict.fromkeys(record["group"] for record in scores if "group" in record):
        points = sorted((r["sparsity"], r["score"]) for r in scores if r.get("group") == group)
        axes.plot(*zip((0.0, baseline), *points, strict=True), marker=".", label=group)
    axes.set(xlabel="share of the group's channels removed", ylabel="accuracy on held-out images (%)")
    axes.legend(fontsize="small")
    figure.savefig(picture, dpi=120)


def compare(models: dict[str, nn.Module], test: Split, example: Tensor) -> list[dict[str, float | str]]:
    """A row of the table for each model: what it reaches and what it costs."""
    latencies = latencies_ms([model.eval() for model in models.values()], test[0][:256])
    rows = []
    for (name, model), latency in zip(models.items(), latencies, strict=True):
        macs, params = cost(model, example)
        score = accuracy(model, test)
        rows.append({"model": name, "accuracy_percent": score, "macs": macs, "params": params, "latency_ms": latency})
    return rows


def show(console: Console, rows: list[dict[str, float | str]]) -> None:
    """The table that the demo ends with."""
    table = Table(title="handwritten digits, half of the MACs removed", title_justify="left")
    for heading, justify in [("model", "left"), ("accuracy", "right"), ("MACs", "right"), ("parameters", "right")]:
        table.add_column(heading, justify=justify)
    table.add_column("latency, 256 images", justify="right")
    for entry in rows:
        table.add_row(
            str(entry["model"]),
            f"{entry['accuracy_percent']:.2f} %",
            f"{entry['macs'] / 1e6:.2f} M",
            f"{entry['params']:,}",
            f"{entry['latency_ms']:.1f} ms",
        )
    console.print(table)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="folder for everything written")
    parser.add_argument("--removal-ratio", type=float, default=0.5, help="share of the MACs to remove")
    parser.add_argument("--epochs", type=int, default=25, help="epochs of the first training")
    parser.add_argument("--retrain-epochs", type=int, default=15, help="epochs after pruning")
    parser.add_argument("--ofa-epochs", type=int, default=15, help="epochs of training of the once-for-all supernet")
    parser.add_argument("--num-subnet", type=int, default=30, help="candidates of the one-step search")
    parser.add_argument("--tolerance", type=float, default=1.0, help="points of accuracy that may be lost")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    console = Console()
    start = time.perf_counter()
    options.output.mkdir(parents=True, exist_ok=True)
    # Layers this small gain little from a second thread, and lose a lot where other programs compete for the cores.
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    training, held_out, test = digits(options.seed)
    demo = Demo(options, console, DigitsNet(), training, held_out, test)

    demo.say(f"training a residual network on {len(training[0])} images")
    train(demo.model, training, options.epochs, lr=0.1)
    demo.models["dense"] = demo.model
    difference = iterative(demo)
    one_step(demo)
    front = once_for_all(demo)

    rows = compare(demo.models, test, demo.example)
    for row in rows[1:]:
        if rows[0]["accuracy_percent"] - row["accuracy_percent"] > options.tolerance:
            demo.problems.append(f"{row['model']}: more than {options.tolerance:g} points of accuracy were lost")
    for spec in demo.folder.glob("*.spec"):
        shutil.copy(spec, options.output)
    summary = {
        "rows": rows,
        "accuracy_percent_before_retraining": demo.before_retraining,
        "front": [{name: subnet[name] for name in ("macs", "params", "accuracy")} for subnet in front],
        "slim_vs_sparse_relative": difference,
        "seconds": time.perf_counter() - start,
    }
    (options.output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")

    show(console, rows)
    before = ", ".join(f"{score:.2f} % {name}" for name, score in demo.before_retraining.items())
    console.print(f"before retraining: {before}")
    console.print(
        "once-for-all, on held-out images: " + ", ".join(f"{s['macs']:.1f} M {s['accuracy']:.1f} %" for s in front)
    )
    console.print(f"slim and sparse outputs agree to {difference:.1e}; {summary['seconds']:.0f} s in all")
    console.print(f"written to {options.output}/: {', '.join(sorted(p.name for p in options.output.iterdir()))}")
    for problem in demo.problems:
        console.print(f"[bold red]failed:[/] {problem}")
    return 1 if demo.problems else 0


if __name__ == "__main__":
    sys.exit(main())
