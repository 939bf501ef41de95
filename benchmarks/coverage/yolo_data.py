"""Small data sets for the five tasks of ultralytics, made from a detection data set in YOLO layout.

Cells are round: masks are ellipses in the boxes, keypoints their centres and ends, rotated boxes the boxes turned, and
classes the cut-out boxes. What is trained on them is trained for real, though nothing useful is learned from so little.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from math import cos, pi, sin
from pathlib import Path

import numpy as np
import torch
from PIL import Image

NAMES = ("RBC", "WBC", "Platelets")
KEYPOINTS = 5


def write_data(source: Path, folder: Path, train: int, val: int) -> dict[str, Path]:
    """Write so many images of the splits ``train`` and ``val``, with labels, and return what to give as ``data``."""
    counts = {"train": train, "val": val}
    found: dict[str, Path] = {}
    for task, label in LABELS.items():
        root = folder / task
        for split, count in counts.items():
            for picture, boxes in _pictures(source, split, count):
                _copy(picture, root / "images" / split / picture.name)
                text = "".join(
                    f"{int(box[0])} {' '.join(f'{value:.6f}' for value in label(box[1:], k))}\n"
                    for k, box in enumerate(boxes)
                )
                path = root / "labels" / split / f"{picture.stem}.txt"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
        found[task] = root / "data.yaml"
        found[task].write_text(_description(root, task))
    found["classify"] = folder / "classify"
    for split, count in counts.items():
        for picture, boxes in _pictures(source, split, count):
            _cut_out(picture, boxes, found["classify"] / split)
    return found


def read_pictures(folder: Path, count: int, pixels: int) -> torch.Tensor:
    """Images for training, (count, 3, pixels, pixels)."""
    found = sorted((folder / "images" / "train").glob("*.jpg"))[:count]
    images = [np.asarray(Image.open(path).convert("RGB").resize((pixels, pixels))) for path in found]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def _pictures(source: Path, split: str, count: int) -> list[tuple[Path, np.ndarray]]:
    """Images with their boxes (n, 5): class, centre, size. Those with many different classes come first."""
    found = []
    for picture in sorted((source / "images" / split).glob("*.jpg")):
        label = source / "labels" / split / f"{picture.stem}.txt"
        found.append((picture, np.loadtxt(label, ndmin=2)))
    found.sort(key=lambda item: -len(np.unique(item[1][:, 0])))
    if len(found) < count:
        raise FileNotFoundError(f"{source / 'images' / split} has {len(found)} images, {count} are asked for")
    return found[:count]


def _box(box: np.ndarray, position: int) -> list[float]:
    return list(box)


def _ellipse(box: np.ndarray, position: int) -> list[float]:
    x, y, w, h = box
    angles = [2 * pi * k / 16 for k in range(16)]
    return [v for a in angles for v in _inside(x + w / 2 * cos(a), y + h / 2 * sin(a))]


def _keypoints(box: np.ndarray, position: int) -> list[float]:
    x, y, w, h = box
    points = ((x, y), (x - w / 2, y), (x + w / 2, y), (x, y - h / 2), (x, y + h / 2))
    visible = 2.0
    return [*box, *(v for point in points for v in (*_inside(*point), visible))]


def _turned(box: np.ndarray, position: int) -> list[float]:
    x, y, w, h = box
    c, s = cos(pi * (position % 7) / 16), sin(pi * (position % 7) / 16)
    corners = ((-w / 2, -h / 2), (w / 2, -h / 2), (w / 2, h / 2), (-w / 2, h / 2))
    return [v for a, b in corners for v in _inside(x + a * c - b * s, y + a * s + b * c)]


def _inside(x: float, y: float) -> tuple[float, float]:
    return min(max(x, 0.0), 1.0), min(max(y, 0.0), 1.0)


LABELS: dict[str, Callable[[np.ndarray, int], list[float]]] = {
    "detect": _box,
    "segment": _ellipse,
    "pose": _keypoints,
    "obb": _turned,
}
"""What a box, and its position in the list of the image, becomes."""


def _description(root: Path, task: str) -> str:
    names = "".join(f"  {k}: {name}\n" for k, name in enumerate(NAMES))
    text = f"path: {root.resolve()}\ntrain: images/train\nval: images/val\nnames:\n{names}"
    if task == "pose":
        text += f"kpt_shape: [{KEYPOINTS}, 3]\nflip_idx: [0, 2, 1, 3, 4]\n"
    return text


def _copy(picture: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(picture, target)


def _cut_out(picture: Path, boxes: np.ndarray, folder: Path) -> None:
    """One cut-out of every class that is in the image."""
    image = Image.open(picture)
    for kind in np.unique(boxes[:, 0]):
        x, y, w, h = next(box for box in boxes if box[0] == kind)[1:] * np.tile(image.size, 2)
        target = folder / NAMES[int(kind)] / f"{picture.stem}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        image.crop((int(x - w / 2), int(y - h / 2), int(x + w / 2) + 1, int(y + h / 2) + 1)).save(target)
