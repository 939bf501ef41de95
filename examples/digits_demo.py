"""Prune a small network on scikit-learn's handwritten digits, iteratively and in one step, up to saved slim models."""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn

import channelwise as cw
from pytorch_nndct import IterativePruningRunner, OneStepPruningRunner

Split = tuple[Tensor, Tensor]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, projected where the shape changes."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class DigitsNet(nn.Module):
    """A residual network for grey images (N, 1, 8, 8), ten classes."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 64), blocks: int = 2) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, widths[0], 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        stages = []
        for stage, (width_in, width) in enumerate(zip(widths[:1] + widths[:-1], widths, strict=True)):
            stages.append(
                nn.Sequential(
                    ResidualBlock(width_in, width, stride=1 if stage == 0 else 2),
                    *(ResidualBlock(width, width, stride=1) for _ in range(blocks - 1)),
                )
            )
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(widths[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(F.relu(self.bn(self.conv(x))))
        return self.classifier(x.mean(dim=(2, 3)))


def digits(seed: int) -> tuple[Split, Split, Split]:
    """The 1,797 images as (N, 1, 8, 8) in 0..1, split into 1,097 for training, 300 for analysis, 400 for tests."""
    data = load_digits()
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(data.target)))
    images = torch.from_numpy(data.images / 16).float().unsqueeze(1)[order]
    labels = torch.from_numpy(data.target).long()[order]
    train, held_out, test = (slice(0, 1097), slice(1097, 1397), slice(1397, None))
    return (images[train], labels[train]), (images[held_out], labels[held_out]), (images[test], labels[test])


def shifted(images: Tensor) -> Tensor:
    """Each batch moved by up to one pixel, the augmentation that suits digits."""
    dy, dx = torch.randint(0, 3, (2,)).tolist()
    return F.pad(images, (1, 1, 1, 1))[:, :, dy : dy + 8, dx : dx + 8]


def train(model: nn.Module, split: Split, epochs: int, lr: float, batch: int = 64) -> None:
    """SGD with momentum and a one-cycle learning rate."""
    images, labels = split
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = epochs * (len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=max(steps, 2))
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(images))
        for chosen in order[: len(images) // batch * batch].split(batch):
            loss = F.cross_entropy(model(shifted(images[chosen])), labels[chosen], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


@torch.inference_mode()
def accuracy(model: nn.Module, split: Split) -> float:
    """Share of right answers in percent."""
    model.eval()
    images, labels = split
    return 100 * (model(images).argmax(1) == labels).float().mean().item()


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
    example = test[0][:1]

    console.print(f"[bold]1/7[/] training a residual network on {len(training[0])} images")
    model = DigitsNet()
    train(model, training, options.epochs, lr=0.1)

    console.print("[bold]2/7[/] analysing how much each group of channels matters")
    runner = IterativePruningRunner(model, example, folder=options.output / ".vai")
    runner.ana(accuracy, args=(held_out,), forced=True)
    plot_sensitivity(options.output / ".vai" / "DigitsNet.sens", options.output / "sensitivity.png")

    console.print(f"[bold]3/7[/] removing {options.removal_ratio:.0%} of the MACs")
    sparse = runner.prune(removal_ratio=options.removal_ratio, mode="sparse")
    before_retraining = accuracy(sparse, test)

    console.print("[bold]4/7[/] retraining with the removed channels held at zero")
    train(sparse, training, options.retrain_epochs, lr=0.05)

    console.print("[bold]5/7[/] slimming, saving, reloading into a fresh original network")
    slim = cw.load(DigitsNet(), sparse.slim_state_dict()).eval()
    cw.save(slim, options.output / "model.safetensors")
    reloaded = cw.load(DigitsNet(), options.output / "model.safetensors").eval()

    console.print(
        f"[bold]6/7[/] one step: searching {options.num_subnet} networks of the same compute, without training"
    )
    searcher = OneStepPruningRunner(model, example, folder=options.output / ".vai")
    calibration = list(training[0].split(256))
    searcher.search(
        num_subnet=options.num_subnet, removal_ratio=options.removal_ratio, eval_fn=accuracy, eval_args=(held_out,),
        loader=calibration, seed=options.seed, forced=True,
    )  # fmt: skip
    one_step = searcher.prune(removal_ratio=options.removal_ratio).eval()
    one_step_before_retraining = accuracy(one_step, test)

    console.print("[bold]7/7[/] retraining that one, for a third of the epochs")
    train(one_step, training, max(1, options.retrain_epochs // 3), lr=0.02)
    cw.save(one_step, options.output / "one_step.safetensors")
    rows = compare({"dense": model, "iterative, reloaded": reloaded, "one-step": one_step}, test, example)
    with torch.inference_mode():
        logits = {name: net.eval()(test[0]) for name, net in [("sparse", sparse), ("slim", slim), ("file", reloaded)]}
    difference = (logits["sparse"] - logits["slim"]).abs().max().item() / logits["sparse"].abs().max().item()
    problems = []
    if difference > 1e-5:
        problems.append(f"the slim model differs from the sparse one by {difference:.1e} relative")
    if not torch.equal(logits["slim"], logits["file"]):
        problems.append("the reloaded model differs from the saved one")
    for row in rows[1:]:
        if rows[0]["accuracy_percent"] - row["accuracy_percent"] > options.tolerance:
            problems.append(f"{row['model']}: more than {options.tolerance:g} points of accuracy were lost")

    for spec in (options.output / ".vai").glob("*.spec"):
        shutil.copy(spec, options.output)
    summary = {
        "rows": rows,
        "accuracy_percent_before_retraining": before_retraining,
        "one_step_accuracy_percent_before_retraining": one_step_before_retraining,
        "slim_vs_sparse_relative": difference,
        "seconds": time.perf_counter() - start,
    }
    (options.output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")

    show(console, rows)
    console.print(
        f"before retraining: {before_retraining:.2f} % iterative, {one_step_before_retraining:.2f} % one-step, with "
        "weights re-fitted"
    )
    console.print(f"slim and sparse outputs agree to {difference:.1e}; {summary['seconds']:.0f} s in all")
    console.print(f"written to {options.output}/: {', '.join(sorted(p.name for p in options.output.iterdir()))}")
    for problem in problems:
        console.print(f"[bold red]failed:[/] {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
