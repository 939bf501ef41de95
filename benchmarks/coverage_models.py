"""The models of the coverage sweep: names, inputs, and how they are built with random weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from coverage_other import INPUTS, build_other
from coverage_transformers import CLASSES, build_transformers
from torch import nn

from channelwise.cli.models import build_model, parse_input

TIMM = Path(__file__).with_name("coverage_timm.txt")
"""One ``timm:NAME SHAPE`` a line: up to four of every module of timm, to 100 M parameters, or its smallest."""

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

    def build(self) -> nn.Module:
        """In eval mode, with random weights that are the same every time."""
        torch.manual_seed(0)
        library, _, name = self.spec.partition(":")
        if library == "ultralytics":
            return _yolo(name)
        if library == "other":
            return build_other(name)
        if library == "transformers":
            return build_transformers(name)
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


def entries(libraries: set[str]) -> list[Entry]:
    """All models of these libraries."""
    found: list[Entry] = []
    if "torchvision" in libraries:
        found += _torchvision()
    if "timm" in libraries:
        lines = [line.split() for line in TIMM.read_text().splitlines() if line]
        found += [Entry(spec, tuple(shapes)) for spec, *shapes in lines]
    if "smp" in libraries:
        for decoder in DECODERS:
            encoders = [INSTEAD.get(e, e) if decoder in DILATED else e for e in ENCODERS]
            found += [Entry(f"smp:{decoder}/{encoder}", ("1,3,128,128",)) for encoder in encoders]
        for decoder, encoders in OF_TRANSFORMERS.items():
            found += [Entry(f"smp:{decoder}/{encoder}", ("1,3,224,224",)) for encoder in encoders]
    if "ultralytics" in libraries:
        found += [Entry(f"ultralytics:{name}", ("1,3,320,320",)) for name in YOLO]
    if "other" in libraries:
        found += [Entry(f"other:{name}", (shape,)) for name, shape in INPUTS.items()]
    if "transformers" in libraries:
        found += [Entry(f"transformers:{name}", (f"1,3,{side},{side}",)) for name, (side, _) in CLASSES.items()]
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


class Predictions(nn.Module):
    """A YOLO model that does not return the features of its neck beside what it predicts: outputs keep their size."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> Any:
        """Boxes, scores and so on, in the model's own nesting."""
        return _without_features(self.model(images))


def _without_features(output: Any) -> Any:
    if isinstance(output, dict):
        return {name: _without_features(part) for name, part in output.items() if name != "feats"}
    if isinstance(output, (tuple, list)):
        return type(output)(_without_features(part) for part in output)
    return output


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
