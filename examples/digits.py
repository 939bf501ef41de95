"""Handwritten digits of scikit-learn, a small residual network for them, and its plain training loop."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

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
