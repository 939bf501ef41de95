"""Another tool prunes a model of the sweep: does the result run, and is it the original with zeroed channels?

Every tool, ours among them, is asked the same way and judged by the same measure, which needs no knowledge of how a
tool works: as soon as the tool no longer looks at values, every value of the model is replaced by its own position.
What the pruned model holds then says which values were kept. They are put back, those that were removed are zeroed in
a copy of the original, and the outputs of the two are compared.
"""

from __future__ import annotations

import copy
import time
import traceback
from collections.abc import Generator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from channelwise.inputs.example import cast, doubled
from channelwise.inputs.tree import tensors_in
from channelwise.surgery import clone_module
from channelwise.tensors import named_tensors
from channelwise.testing.modules import randomise, settle_statistics
from channelwise.testing.values import distance, shape_of

from .check import runs_in_double, small_inputs
from .journal import Row
from .models import Entry
from .outputs import HeadOutputs
from .tools import TOOLS, version_of

LIMITS = {True: 1e-6, False: 1e-3}
"""Relative differences of outputs that rounding explains, in float64 and otherwise; wrong channels make about 1."""


def compare(entry: Entry, tool: str) -> Row:
    """One tool's result.

    ``error`` is empty if the tool made a smaller model that runs and returns outputs of the same shapes.
    ``exact`` is "yes" or "no", or "n/a" where zeroing need not be the same as removing, with the reason in ``why``.
    """
    row: Row = {"version": version_of(tool), "error": "", "stage": "build"}
    try:
        _warm_up(tool)
        model, inputs, small = _prepared(entry)
        row["stage"] = "prune"
        try:
            pruned, row["seconds"], tagged = _pruned(tool, model, inputs, tag=True)
            kept, unclear = _untag(pruned, model, tagged)
        except Exception as error:
            # Positions in place of values must not be what a tool fails at.
            kept, unclear = {}, f"{type(error).__name__} with positions for values"
        if unclear:
            pruned, row["seconds"], _ = _pruned(tool, model, inputs, tag=False)
        row["stage"] = "run"
        (before, shapes), (after, left) = _compute(model, inputs), _compute(pruned, inputs)
        row["macs_left"] = after / max(before, 1)
        sizes = [sum(p.numel() for p in m.parameters()) for m in (pruned, model)]
        row["params_left"] = sizes[0] / max(sizes[1], 1)
        if sizes[0] == sizes[1]:
            raise ValueError("nothing was removed")
        if not entry.is_detector:
            _demand_same_shapes(shapes, left)
        row["stage"] = "compare"
        row |= {"exact": "n/a", "why": unclear} if unclear else _exactness(model, pruned, kept, small)
        row["stage"] = "done"
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {error}"[:1000]
        row["traceback"] = traceback.format_exc()[-2000:]
    return row


def _prepared(entry: Entry) -> tuple[nn.Module, tuple[Any, ...], tuple[Any, ...]]:
    """The model, example inputs, and smaller ones where it takes them; a detector returns what its heads say."""
    model = entry.build()
    if entry.is_detector:
        model = HeadOutputs(model).eval()
    inputs, small = entry.arguments(), small_inputs(entry, model)
    randomise(model)
    settle_statistics(model, doubled(small), {})
    return model, inputs, small


def _pruned(tool: str, model: nn.Module, inputs: tuple[Any, ...], *, tag: bool) -> tuple[nn.Module, float, set[str]]:
    """What the tool makes of a copy, its seconds, and the names of the tensors whose values are positions."""
    copied = clone_module(model, {})
    torch.manual_seed(0)
    start = time.process_time()
    steps = TOOLS[tool](copied, inputs)
    next(steps)
    seconds = time.process_time() - start
    tagged = _tag(copied) if tag else set()
    start = time.process_time()
    pruned = _last(steps).eval()
    return pruned, seconds + time.process_time() - start, tagged


@cache
def _warm_up(tool: str) -> None:
    """Importing a tool takes seconds, which are no model's."""
    list(TOOLS[tool](nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 3)).eval(), (torch.zeros(1, 3, 8, 8),)))


def _last(steps: Generator[None, None, nn.Module]) -> nn.Module:
    try:
        next(steps)
    except StopIteration as end:
        return end.value
    raise RuntimeError("a tool stops once, before values no longer matter")


def _floating(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in named_tensors(model).items() if tensor.is_floating_point()}


def _tag(model: nn.Module) -> set[str]:
    """Replace every value by its position in its tensor, in place."""
    found = _floating(model)
    for tensor in {id(t): t for t in found.values()}.values():
        tensor.data = torch.arange(tensor.numel(), dtype=torch.float64).view(tensor.shape)
    return set(found)


def _untag(pruned: nn.Module, model: nn.Module, tagged: set[str]) -> tuple[dict[str, Tensor], str]:
    """Put the values back; returns masks of what was kept, by name, and what is in the way of telling."""
    originals, found = _floating(model), _floating(pruned)
    kept: dict[str, Tensor] = {}
    unclear = "" if found.keys() == tagged == originals.keys() else "other parameters than before"
    done: set[int] = set()
    for name, tensor in found.items():
        original = originals.get(name)
        if original is None:
            continue
        if id(tensor) in done:
            kept[name] = next(mask for other, mask in kept.items() if found[other] is tensor)
            continue
        done.add(id(tensor))
        position = tensor.detach().round()
        whole = tensor.dtype == torch.float64 and bool((position == tensor).all()) and tensor.dim() == original.dim()
        if not whole or (tensor.numel() and not 0 <= float(position.min()) <= float(position.max()) < original.numel()):
            unclear = f"{name} was computed, not selected"
            continue
        flat = position.long()
        mask = torch.zeros(original.numel(), dtype=torch.bool)
        mask[flat.flatten()] = True
        kept[name] = mask.view(original.shape)
        tensor.data = original.detach().flatten()[flat]
    return kept, unclear


def _compute(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[int, list[Any]]:
    """Operations of convolutions and matrix products, counted by PyTorch, and the shapes of the outputs."""
    # Under no_grad the counter stumbles over expanded parameters.
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        outputs = model(*copy.deepcopy(inputs))
    return int(counter.get_total_flops()), [shape_of(t) for t in tensors_in(outputs, attributes=True)]


def _outputs(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return tensors_in(model(*copy.deepcopy(inputs)), attributes=True)


def _demand_same_shapes(before: list[Any], after: list[Any]) -> None:
    for was, became in zip(before, after):
        if was != became:
            raise ValueError(f"an output of shape {was} became {became}")


def _exactness(model: nn.Module, pruned: nn.Module, kept: dict[str, Tensor], inputs: tuple[Any, ...]) -> Row:
    """Do the pruned model and the original with zeros in place of what was removed agree?"""
    double = runs_in_double(model, inputs)
    if double:
        model, pruned, inputs = model.double(), pruned.double(), cast(inputs, torch.float64)
    dense = _outputs(model, inputs)
    masked = clone_module(model, {})
    found = _floating(masked)
    with torch.no_grad():
        for name, mask in kept.items():
            found[name].masked_fill_(~mask, 0)
    zeroed = _outputs(masked, inputs)
    error = distance(_outputs(pruned, inputs), zeroed)
    result = {"difference": error, "changed": distance(zeroed, dense), "why": ""}
    if error <= LIMITS[double]:
        return result | {"exact": "yes"}
    reason = notices_zeros(model, inputs)
    return result | ({"exact": "n/a", "why": reason} if reason else {"exact": "no"})


REDUCTIONS = ("mean", "var", "std", "var_mean", "std_mean", "amax", "amin", "max", "min", "prod", "linalg_vector_norm")
WHOLE = (
    "native_layer_norm", "native_group_norm", "_fused_rms_norm", "_softmax", "_log_softmax", "sort", "topk",
    "argmax", "argmin", "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_attention_math",
    "_native_multi_head_attention", "_transformer_encoder_layer_fwd",
)  # fmt: skip


def notices_zeros(model: nn.Module, inputs: tuple[Any, ...]) -> str:
    """An operation for which a channel of zeros may not be the same as no channel; empty if there is none.

    Averages and the like over the last axes of maps are harmless; over any other axis they count as one.
    """
    seen: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = func.overloadpacket.__name__
            if name in WHOLE or (name in REDUCTIONS and not _over_pixels(args, axes - 2)):
                seen.append(name)
            # Batch norm over the batch it sees: the standardisation of a weight, or an instance norm.
            if name in ("native_batch_norm", "_native_batch_norm_legit") and any(a is True for a in args):
                seen.append(name)
            # A kernel that moves along what was averaged over the pixels: over channels, as in ECA.
            if name == "convolution" and args[0].dim() == 3 and args[0].shape[1] == 1 and axes > 3:
                seen.append("a kernel over channels")
            return func(*args, **(kwargs or {}))

    axes = max(t.dim() for t in tensors_in(inputs, attributes=True))
    with Watch():
        _outputs(model, inputs)
    return seen[0].removeprefix("_").removeprefix("native_") if seen else ""


def _over_pixels(args: tuple[Any, ...], pixels: int) -> bool:
    """Whether only the last axes are reduced, ``pixels`` of them at most, and never the second, that of channels."""
    tensor, axes = args[0], [a for a in args[1:] if isinstance(a, (int, list)) and not isinstance(a, bool)]
    if tensor.dim() < 3 or not axes:
        return False
    numbers = axes[0] if isinstance(axes[0], list) else [axes[0]]
    # With channels as groups and their members, as in EvoNorm, the third axis is one of channels.
    return bool(numbers) and min(n % tensor.dim() for n in numbers) >= max(2, tensor.dim() - pixels)
