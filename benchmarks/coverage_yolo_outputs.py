"""What YOLO models predict, in PyTorch and from exported files, in a form in which it can be compared."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from channelwise.inputs.tree import tensors_in

NOTHING = 1e-5
"""Of scores that are all smaller than this, only that they are is compared: the smallest are zero in some runtimes."""


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
