"""CIFAR-10 held in memory as uint8 tensors, with augmentation of whole batches at once."""

from __future__ import annotations

import argparse
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

log = logging.getLogger(__name__)

MEAN = torch.tensor([0.485, 0.456, 0.406])
STD = torch.tensor([0.229, 0.224, 0.225])


@dataclass(frozen=True)
class Images:
    """`pixels` (N, 32, 32, 3) uint8 and `labels` (N,) int64, on one device."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, chosen: slice) -> Images:
        return Images(self.pixels[chosen], self.labels[chosen])

    def to(self, device: torch.device) -> Images:
        return Images(self.pixels.to(device), self.labels.to(device))

    def batches(self, size: int, augment: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised batches (N, 3, 32, 32) in channels-last memory with their labels; shuffled when augmented."""
        device = self.labels.device
        order = torch.randperm(len(self), device=device) if augment else torch.arange(len(self), device=device)
        for chosen in order.split(size):
            yield self.batch(chosen, augment)

    def batch(self, chosen: Tensor, augment: bool = False) -> tuple[Tensor, Tensor]:
        """The images with these positions (N,), as `batches` gives them."""
        pixels = self.pixels[chosen]
        return normalised(crop_and_flip(pixels) if augment else pixels), self.labels[chosen]


def normalised(pixels: Tensor) -> Tensor:
    """uint8 (N, H, W, 3) to float (N, 3, H, W), which is channels-last without a copy."""
    scaled = (pixels.float() / 255 - MEAN.to(pixels.device)) / STD.to(pixels.device)
    return scaled.permute(0, 3, 1, 2)


def crop_and_flip(pixels: Tensor, margin: int = 4) -> Tensor:
    """A random crop of the zero-padded image and a random mirroring, other ones for each image, in a single gather."""
    n, height, width, _ = pixels.shape
    device = pixels.device
    padded = torch.nn.functional.pad(pixels, (0, 0, margin, margin, margin, margin))
    top, left = torch.randint(0, 2 * margin + 1, (2, n, 1), device=device)
    columns = torch.arange(width, device=device).expand(n, width)
    columns = torch.where(torch.rand(n, 1, device=device) < 0.5, columns.flip(1), columns)
    rows = top + torch.arange(height, device=device)
    image = torch.arange(n, device=device)[:, None, None]
    return padded[image, rows[:, :, None], (left + columns)[:, None, :]]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that all CIFAR-10 programs share."""
    parser.add_argument("--data", type=Path, required=True, help="folder of train.npz and test.npz, or for torchvision")
    parser.add_argument("--limit-train", type=int, help="use only so many training images (smoke tests)")
    parser.add_argument("--limit-test", type=int, help="use only so many test images (smoke tests)")
    parser.add_argument("--output", type=Path, default=Path("cifar10-output"), help="folder for everything written")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)


def load(folder: Path) -> tuple[Images, Images]:
    """Training and test images: from `train.npz` and `test.npz` in `folder`, otherwise torchvision's CIFAR10.

    A packed file holds `jpeg` (uint8, all files end to end), `offsets` (int64, N + 1) and `labels` (uint8).
    """
    if (folder / "train.npz").exists():
        return unpack(folder / "train.npz"), unpack(folder / "test.npz")
    from torchvision.datasets import CIFAR10

    sets = [CIFAR10(str(folder), train=is_train, download=True) for is_train in (True, False)]
    train, test = (Images(torch.from_numpy(s.data), torch.tensor(s.targets)) for s in sets)
    return train, test


def unpack(path: Path) -> Images:
    """Decode a packed file once; 50,000 images take a few seconds and 154 MB."""
    from PIL import Image

    with np.load(path) as packed:
        jpeg, offsets, labels = packed["jpeg"], packed["offsets"], packed["labels"]
    log.info("decoding %d images of %s", len(labels), path.name)
    pixels = np.stack(
        [
            np.asarray(Image.open(io.BytesIO(jpeg[start:end].tobytes())).convert("RGB"))
            for start, end in pairwise(offsets)
        ]
    )
    return Images(torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64)))
