"""What models return, in a form in which it can be compared: detectors, YOLO models, exported files."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from channelwise.inputs.tree import tensors_in

NOTHING = 1e-5
"""Of scores that are all smaller than this, only that they are is compared: the smallest are zero in some runtimes."""


class HeadOutputs(nn.Module):
    """A detector that returns what its heads say, before boxes are sorted and suppressed.

    Rounding decides the order of boxes, so the detections of two equal networks need not be equal.
    """

    HEADS = ("head", "rpn.head", *(f"roi_heads.{part}_predictor" for part in ("box", "mask", "keypoint")))

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: list[torch.Tensor]) -> list[Any]:
        """The whole detector runs; the outputs of its heads (every one of other sizes) are returned.

        In training its losses are, for one object in the middle of every image.
        """
        if self.training:
            return list(self.detector(images, [_one_object(image) for image in images]).values())
        said: list[Any] = []
        heads = [m for name, m in self.detector.named_modules() if name in self.HEADS]
        hooks = [head.register_forward_hook(lambda module, args, output: said.append(output)) for head in heads]
        try:
            self.detector(images)
        finally:
            for hook in hooks:
                hook.remove()
        return said


def _one_object(image: torch.Tensor) -> dict[str, torch.Tensor]:
    """What every detector of torchvision wants to know about an image of shape (3, H, W)."""
    height, width = image.shape[-2:]
    corners = image.new_tensor([0.2 * width, 0.2 * height, 0.7 * width, 0.7 * height])
    seen = image.new_ones(17)
    return {
        "boxes": corners[None],
        "labels": torch.ones(1, dtype=torch.int64),
        "masks": torch.ones(1, height, width, dtype=torch.uint8),
        "keypoints": torch.stack([seen * corners[0] + 5, seen * corners[1] + 5, seen], 1)[None],
    }


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


def predictions(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """What the model predicts, without the raw values that it returns beside."""
    with torch.no_grad():
        output = model.eval()(images)
    first = output[0] if isinstance(output, (tuple, list)) else output
    return apart(tensors_in(first, attributes=True), getattr(model, "end2end", False))


def apart(outputs: Iterable[torch.Tensor], end2end: bool) -> list[torch.Tensor]:
    """Coordinates, scores and so on of all boxes, each by itself: a score would be nothing beside a coordinate.

    Shapes are (N, values, boxes) or, of heads that need no suppression, (N, boxes, values); prototypes of masks are
    (N, values, H, W), and what a classifier says is (N, classes).
    """
    return [part for output in outputs for part in output.unbind(2 if end2end and output.ndim == 3 else 1)]


def difference(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """The largest difference, relative to the largest of each value; infinite when the shapes differ.

    Raises:
        ValueError: a value is not finite, and would be equal to anything that is not.
    """
    if [part.shape for part in found] != [part.shape for part in expected]:
        return float("inf")
    worst = 0.0
    for ours, theirs in zip(found, expected, strict=True):
        if not (ours.isfinite().all() and theirs.isfinite().all()):
            raise ValueError("a prediction is not finite")
        worst = max(worst, float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(NOTHING)))
    return worst


def run_exported(file: str, images: torch.Tensor) -> list[torch.Tensor]:
    if file.endswith(".torchscript"):
        with torch.no_grad():
            return tensors_in(torch.jit.load(file)(images), attributes=True)
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(value) for value in session.run(None, {session.get_inputs()[0].name: images.numpy()})]
