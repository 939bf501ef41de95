"""One model of the sweep: traced; then, unless that is all, halved, compared, counted, trained, saved and loaded."""

from __future__ import annotations

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
from torch import nn

import channelwise as cw
from channelwise.inputs.example import cast
from channelwise.inputs.tree import tensors_in
from channelwise.report.inspection import frozen_outputs
from channelwise.surgery import clone_module
from channelwise.testing.modules import prunable_outputs
from channelwise.testing.oracle import check_oracle
from channelwise.testing.values import distance

from .journal import Row
from .models import Entry
from .outputs import HeadOutputs

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


def check(entry: Entry, only_trace: bool = False) -> Row:
    """What the journal keeps of a model. ``error`` is empty if everything held."""
    row: Row = {"inputs": list(entry.inputs), "error": "", "stage": "build"}
    start = time.perf_counter()
    try:
        memory = PeakMemory()
        model = entry.build()
        row["stage"] = "forward"
        inputs = entry.arguments()
        row["forward_s"] = _forward_seconds(model, inputs)
        row["forward_bytes"] = memory.peak()
        row["stage"] = "trace"
        began = time.process_time()
        graph = cw.trace(model, inputs)
        row["trace_s"] = time.process_time() - began
        row |= _found(graph)
        row["trace_bytes"] = memory.peak()
        if not only_trace:
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


def _found(graph: cw.ChannelGraph) -> Row:
    """What the trace found: the numbers of a selection that is always the same, and what stays."""
    masks = prunable_outputs(graph.model, graph.structure)
    convolutions = {n for n, m in graph.model.named_modules() if isinstance(m, nn.modules.conv._ConvNd)}
    half = graph.select(sparsity=0.5) if graph.groups else cw.Selection({})
    causes: dict[str, int] = {}
    reasons: dict[str, int] = {}
    for frozen in frozen_outputs(graph.structure):
        causes[frozen.cause.value] = causes.get(frozen.cause.value, 0) + frozen.channels
        reasons[frozen.reason] = frozen.channels
    return {
        "groups": len(graph.groups),
        "slim_only": sum(group.slim_only for group in graph.groups),
        "conv_outputs": sum(mask.size for name, mask in masks.items() if name in convolutions),
        "conv_prunable": sum(int(mask.sum()) for name, mask in masks.items() if name in convolutions),
        "prunable": sum(int(mask.sum()) for mask in masks.values()),
        "macs": graph.macs(),
        "macs_half": graph.macs(half),
        "causes": causes,
        "reasons": dict(sorted(reasons.items(), key=lambda item: -item[1])[:6]),
        "tripwires": [note for note in graph.structure.notes if note.lower().startswith("tripwire")],
    }


def _compared(entry: Entry, model: nn.Module) -> Row:
    """The oracle, on small images where the model takes them, in float64 where its code allows that.

    A detector resizes images to smaller ones afterwards.
    """
    if entry.is_detector:
        resize = getattr(model, "transform", None)
        if resize is not None and resize.fixed_size is None:
            resize.min_size = (2 * SMALL,)  # instead of 800
        model = HeadOutputs(model).eval()
    inputs = small_inputs(entry, model)
    double = runs_in_double(model, inputs)
    # How many boxes a detector looks at depends on the image.
    report = check_oracle(model, inputs, dtype=torch.float64 if double else None, count=not entry.is_detector)
    return {
        "relative_error": report.error,
        "changed": report.changed,
        "compared_in_training": report.compared_in_training,
        "trained": report.trained,
        "uncompared": list(report.uncompared),
        "granted": list(report.granted),
        "raised": list(report.raised),
        "double": double,
    }


def small_inputs(entry: Entry, model: nn.Module) -> tuple[Any, ...]:
    """Example inputs, small ones where the model takes them."""
    inputs = entry.arguments(SMALL)
    return inputs if _runs(model, inputs) else entry.arguments()


def runs_in_double(model: nn.Module, inputs: tuple[Any, ...]) -> bool:
    """Whether a model is small enough for float64, and its code allows it."""
    small = sum(p.numel() for p in model.parameters()) <= LARGE
    return small and _runs(clone_module(model, {}).double(), cast(inputs, torch.float64))


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
