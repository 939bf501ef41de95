"""The models of the coverage sweep: names, inputs, and how they are built with random weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from channelwise.cli.models import build_model, parse_input

from .outputs import Predictions
from .settings import IMAGES, OTHER, build_with_settings

TIMM = Path(__file__).with_name("timm.txt")
"""A shape of inputs and names a line: up to four of every module of timm, to 100 M parameters, or its smallest."""

TITLES = {
    "torchvision": "torchvision",
    "timm": "timm",
    "ultralytics": "ultralytics",
    "smp": "segmentation-models-pytorch",
    "transformers": "transformers (images)",
    "other": "audio and volumes (MONAI, transformers)",
}
"""The libraries."""
SHAPES = {
    "inception_v3": "1,3,299,299",
    **dict.fromkeys(("raft_large", "raft_small"), "1,3,128,128 1,3,128,128"),
    **dict.fromkeys(("mc3_18", "r2plus1d_18", "r3d_18"), "1,3,16,112,112"),
    "s3d": "1,3,16,224,224",
    **dict.fromkeys(("mvit_v1_b", "mvit_v2_s"), "1,3,16,224,224"),
    **dict.fromkeys(("swin3d_t", "swin3d_s", "swin3d_b"), "1,3,16,112,112"),
}
DETECTORS = ("rcnn", "retinanet", "fcos", "ssd")
DECODERS = (
    "Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "PAN", "DeepLabV3", "DeepLabV3Plus", "UPerNet",
    "Segformer",
)  # fmt: skip
ENCODERS = ("resnet18", "mobilenet_v2", "efficientnet-b0", "vgg11_bn", "densenet121")
DILATED = ("PAN", "DeepLabV3", "DeepLabV3Plus")
"""Decoders of dilated features, which VGG and DenseNet do not offer: other encoders take their place."""
INSTEAD = {"vgg11_bn": "resnet50", "densenet121": "efficientnet-b1"}
OF_TRANSFORMERS = {
    "DPT": (
        "tu-vit_tiny_patch16_224", "tu-deit3_small_patch16_224", "tu-deit_tiny_distilled_patch16_224",
        "tu-beit_base_patch16_224", "tu-vit_tiny_r_s16_p8_224",
    ),
    "Segformer": ("mit_b0",),
}  # fmt: skip
"""Decoders of features that transformers compute, for images of the size these are built for."""
YOLO = (
    "yolov3-tiny", "yolov3", "yolov5n", "yolov5s", "yolov6n", "yolov8n", "yolov8s", "yolov8n-seg", "yolov8n-pose",
    "yolov8n-cls", "yolov8n-obb", "yolov9t", "yolov9s", "yolov10n", "yolov10s", "yolo11n", "yolo11s", "yolo11n-seg",
    "yolo11n-pose", "yolo11n-cls", "yolo11n-obb", "yolo12n", "yolo12s",
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A model of the sweep: ``spec`` as for ``channelwise inspect``, inputs as shapes."""

    spec: str
    inputs: tuple[str, ...]

    @property
    def library(self) -> str:
        """What comes before the colon."""
        return self.spec.partition(":")[0]

    @property
    def is_detector(self) -> bool:
        """Whether it takes a list of images, and sorts boxes."""
        return self.inputs[0].startswith("[")

    def build(self) -> nn.Module:
        """In eval mode, with random weights that are the same every time."""
        torch.manual_seed(0)
        library, _, name = self.spec.partition(":")
        if library == "ultralytics":
            return _yolo(name)
        if library in ("other", "transformers"):
            return build_with_settings(name)
        if library == "smp":
            import segmentation_models_pytorch as smp

            decoder, _, encoder = name.partition("/")
            model: nn.Module = getattr(smp, decoder)(encoder_name=encoder, encoder_weights=None, classes=5)
            return model.eval()
        return build_model(self.spec)

    def arguments(self, pixels: int | None = None) -> tuple[Any, ...]:
        """Example inputs; with ``pixels``, images not larger than that, and volumes and videos than some of that."""
        torch.manual_seed(0)
        found = []
        for text in self.inputs:
            bracket = text.startswith("[")
            sizes = [int(size) for size in text.strip("[]").split(",")]
            if pixels is not None and len(sizes) == 5:
                sizes[-3:] = [min(size, pixels // 2 if max(sizes[-3:]) > 64 else pixels // 6) for size in sizes[-3:]]
            elif pixels is not None and len(sizes) >= 3 + (not bracket):
                sizes[-2:] = [min(size, pixels) for size in sizes[-2:]]
            joined = ",".join(map(str, sizes))
            found.append(parse_input(f"[{joined}]" if bracket else joined))
        return tuple(found)


def entries() -> list[Entry]:
    """All models."""
    found = _torchvision()
    for shape, *names in map(str.split, TIMM.read_text().splitlines()):
        found += [Entry(f"timm:{name}", (shape,)) for name in names]
    for decoder in DECODERS:
        encoders = [INSTEAD.get(e, e) if decoder in DILATED else e for e in ENCODERS]
        found += [Entry(f"smp:{decoder}/{encoder}", ("1,3,128,128",)) for encoder in encoders]
    for decoder, encoders in OF_TRANSFORMERS.items():
        found += [Entry(f"smp:{decoder}/{encoder}", ("1,3,224,224",)) for encoder in encoders]
    found += [Entry(f"ultralytics:{name}", ("1,3,320,320",)) for name in YOLO]
    found += [Entry(f"other:{name}", (shape,)) for name, (_, shape, _) in OTHER.items()]
    found += [Entry(f"transformers:{name}", (f"1,3,{side},{side}",)) for name, (side, _) in IMAGES.items()]
    return found


def _torchvision() -> list[Entry]:
    from torchvision import models

    found = []
    for name in models.list_models():
        if name.startswith("quantized_"):
            continue
        shape = SHAPES.get(name, "1,3,224,224")
        if any(part in name for part in DETECTORS):
            shape = "[3,320,320]"
        found.append(Entry(f"torchvision:{name}", tuple(shape.split())))
    return found


def _yolo(name: str) -> nn.Module:
    from ultralytics.nn import tasks

    kinds = {
        "-seg": tasks.SegmentationModel,
        "-pose": tasks.PoseModel,
        "-cls": tasks.ClassificationModel,
        "-obb": tasks.OBBModel,
    }
    kind = next((cls for suffix, cls in kinds.items() if name.endswith(suffix)), tasks.DetectionModel)
    return Predictions(kind(f"{name}.yaml", verbose=False)).eval()
