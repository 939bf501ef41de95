"""What the benchmarks on CIFAR-10 share: options, trained networks, and training images put aside for scores."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

import cifar_data
from cifar10_iterative import ARCHITECTURES, accuracy

__all__ = ["accuracy", "load", "network", "options"]


def options(text: str | None) -> argparse.ArgumentParser:
    """A parser with the options about images."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("--data", type=Path, required=True, help="folder of train.npz and test.npz, or for torchvision")
    parser.add_argument("--images", type=int, default=1000, help="images for calibration, and as many for scores")
    return parser


def load(data: Path, images: int) -> tuple[list[tuple[Tensor, Tensor]], cifar_data.Images, cifar_data.Images]:
    """Batches for calibration with their labels, other training images for scores, and the test images."""
    training, test = cifar_data.load(data)
    return list(training[:images].batches(250)), training[len(training) - images :], test


def network(architecture: str, checkpoint: Path) -> nn.Module:
    """A trained network in eval mode."""
    model: nn.Module = ARCHITECTURES[architecture]()
    model.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True))
    return model.to(memory_format=torch.channels_last).eval()
