"""One model of the coverage sweep: traced, halved, compared, counted, trained a step, saved and loaded."""

from __future__ import annotations

import copy
import ctypes
import logging
import resource
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from statistics import median
from typing import Any

import torch
from coverage_models import Entry
from torch import nn

import channelwise as cw
from channelwise.inputs.example import cast
from channelwise.inputs.tree import tensors_in
from channelwise.report.inspection import frozen_outputs
from channelwise.testing.modules import prunable_outputs
from channelwise.testing.oracle import check_oracle
from channelwise.testing.values import distance

LARGE = 80e6
"""Parameters of a model that is compared in its own precision, as several copies have to fit the memory."""
SMALL = 96
"""Side of the images on which outputs are compared, in float64; speed is measured at the model's own size."""


def prepare_worker(gigabytes: float) -> None:
    """One thread, no warnings, and allocations beyond the limit raise in this process instead of taking the machine."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    limit = int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


class PeakMemory:
    """How much memory this process needed, on top of what it had in the beginning; Linux only."""

    def __init__(self) -> None:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        self.before = self._status("VmRSS")
        self.peak()

    def peak(self) -> int:
        """The peak in bytes since it was asked for last."""
        found = self._status("VmHWM") - self.before
        Path("/proc/self/clear_refs").write_text("5")
        return found

    def _status(self, name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def check(entry: Entry) -> dict[str, Any]:
    """A row of the table. ``error`` is empty if everything held."""
    row: dict[str, Any] = {"spec": entry.spec, "inputs": list(entry.inputs), "error": "", "stage": "build"}
    start = time.perf_counter()
    try:
        memory = PeakMemory()
        model = entry.build()
        row["stage"] = "forward"
        inputs = entry.arguments()
        row["forward_s"] = _forward_seconds(model, inputs)
        row["forward_bytes"] = memory.peak()
        row["stage"] = "trace"
        graph, found = _traced(model, inputs)
        row |= found
        row["trace_bytes"] = memory.peak()
        row["stage"] = "reload"
        row["reloaded"] = _reloaded(entry, graph, inputs)
        del graph
        row["stage"] = "oracle"
        row |= _compared(entry, model)
        row["stage"] = "done"
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {error}"[:2000]
        row["traceback"] = traceback.format_exc()[-3000:]
    row["seconds"] = time.perf_counter() - start
    return row


# Times are those of the processor, which other processes do not disturb as much; there is one thread.
def _forward_seconds(model: nn.Module, inputs: tuple[Any, ...]) -> float:
    times = []
    with torch.no_grad():
        for _ in range(3):
            start = time.process_time()
            model(*inputs)
            times.append(time.process_time() - start)
    return median(times)


def _traced(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[cw.ChannelGraph, dict[str, Any]]:
    start = time.process_time()
    graph = cw.trace(model, inputs)
    seconds = time.process_time() - start
    masks = prunable_outputs(model, graph.structure)
    convolutions = {n for n, m in model.named_modules() if isinstance(m, nn.modules.conv._ConvNd)}
    outputs = sum(mask.size for name, mask in masks.items() if name in convolutions)
    prunable = sum(int(mask.sum()) for name, mask in masks.items() if name in convolutions)
    half = graph.select(sparsity=0.5) if graph.groups else cw.Selection({})
    causes: dict[str, int] = {}
    reasons: dict[str, int] = {}
    for row in frozen_outputs(graph.structure):
        causes[row.cause.value] = causes.get(row.cause.value, 0) + row.channels
        reasons[row.reason] = row.channels
    return graph, {
        "trace_s": seconds,
        "groups": len(graph.groups),
        "slim_only": sum(group.slim_only for group in graph.groups),
        "conv_outputs": outputs,
        "conv_prunable": prunable,
        "macs": graph.macs(),
        "macs_half": graph.macs(half),
        "causes": causes,
        "reasons": dict(sorted(reasons.items(), key=lambda item: -item[1])[:6]),
    }


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


def _compared(entry: Entry, model: nn.Module) -> dict[str, Any]:
    """The oracle, on small images where the model takes them, in float64 where its code allows that.

    A detector resizes images to smaller ones afterwards.
    """
    inputs = entry.arguments(SMALL)
    if entry.inputs[0].startswith("["):
        resize = getattr(model, "transform", None)
        if resize is not None and resize.fixed_size is None:
            resize.min_size = (2 * SMALL,)  # instead of 800
        model = HeadOutputs(model).eval()
    elif not _runs(model, inputs):
        inputs = entry.arguments()
    small = sum(p.numel() for p in model.parameters()) <= LARGE
    double = small and _runs(copy.deepcopy(model).double(), cast(inputs, torch.float64))
    # How many boxes a detector looks at depends on the image.
    detector = isinstance(model, HeadOutputs)
    report = check_oracle(model, inputs, dtype=torch.float64 if double else None, count=not detector)
    return {
        "relative_error": report.error,
        "changed": report.changed,
        "compared_in_training": report.compared_in_training,
        "trained": report.trained,
        "double": double,
    }


def _runs(model: nn.Module, inputs: tuple[Any, ...]) -> bool:
    try:
        with torch.no_grad():
            model(*inputs)
    except Exception:
        return False
    return True


def _reloaded(entry: Entry, graph: cw.ChannelGraph, inputs: tuple[Any, ...]) -> bool:
    """Saved, and loaded into a fresh model: the same outputs?"""
    if not graph.groups:
        return True
    slim = graph.slim(graph.select(sparsity=0.5)).eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slim.safetensors"
        cw.save(slim, path)
        again = cw.load(entry.build(), path).eval()
    with torch.no_grad():
        torch.manual_seed(0)
        first = tensors_in(slim(*inputs), attributes=True)
        torch.manual_seed(0)
        second = tensors_in(again(*inputs), attributes=True)
    if distance(first, second) > 0:
        raise AssertionError("the reloaded model has other outputs than the saved one")
    return True
