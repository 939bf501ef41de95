"""Trying out a pruned model: which channels go, what it returns, and whether two models return the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from channelwise.graph.context import tensors_in
from channelwise.graph.recording import TensorLabels, Trace
from channelwise.graph.structure import Group, Structure
from channelwise.graph.tracer import output_tensors, undisturbed_randomness

Kept = Mapping[str, np.ndarray]


def half_of(structure: Structure, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Remove the first and the last channel and a third to a half of the others, so that any fixed number shows.

    Numbers that adapt (half of the width, a quarter) are right only for selections that are balanced, which a user's
    is not. So most of what stays is in the upper half, and groups lose differently many: code may need two groups to
    keep as many channels without saying so.
    """
    wanted = set(names)
    random = np.random.default_rng(0)
    kept = {}
    for position, group in enumerate(structure.groups):
        indices = np.arange(group.size)
        # Multiples of the golden ratio: neighbours, which are the ones that meet, are far apart.
        share = 0.5 + 0.2 * (position * 0.618034 % 1)
        kept[group.name] = _some_of(group, random, share) if group.name in wanted else indices
    return kept


def _some_of(group: Group, random: np.random.Generator, share: float) -> np.ndarray:
    parts = np.zeros(group.size, int) if group.parts is None else group.parts
    chosen = []
    for part in np.unique(parts):
        members = np.flatnonzero(parts == part)
        inner = members[1:-1] if members.size > 2 else members[1:]
        count = min(max(int(members.size * share), 1), inner.size)
        upper = inner[-(count + 1) :]
        chosen.append(random.choice(upper, count, replace=False))
    return np.sort(np.concatenate(chosen))


def slim_labels(trace: Trace, structure: Structure, kept: Kept, channel: np.ndarray) -> dict[str, TensorLabels]:
    """For every tensor of the slim model, the channel of each of its slots."""
    stays = np.ones(int(channel.max()) + 1, bool)
    for group in structure.groups:
        removed = np.setdiff1d(np.arange(group.size), kept[group.name])
        slots = group.slots[0]
        axis = trace.tensors[slots.tensor].axes[slots.axis]
        assert axis is not None
        stays[channel[axis[slots.index[removed, 0]]]] = False
    found = {}
    for name, labels in trace.tensors.items():
        axes: list[np.ndarray | None] = []
        shape = list(labels.info.shape)
        for number, axis in enumerate(labels.axes):
            mine = None if axis is None else channel[axis][stays[channel[axis]]]
            if mine is not None:
                shape[number] = mine.size // (labels.info.blocks if number == 1 else 1)
            axes.append(mine if shape[number] > 1 else None)
        info = labels.info
        found[name] = TensorLabels(
            type(info)(name, tuple(shape), info.is_parameter, info.module, info.blocks), tuple(axes)
        )
    return found


def run_once(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """The outputs of the model in eval mode, in which it is left; the random state stays as it is."""
    with torch.no_grad(), undisturbed_randomness(tensors_in([list(args), dict(kwargs)])):
        torch.manual_seed(0)
        return output_tensors(model.eval()(*args, **kwargs))


def difference(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> str | None:
    """What differs between two lists of outputs, or None."""
    if len(found) != len(expected):
        return "with fewer channels there are other outputs"
    for a, b in zip(found, expected, strict=True):
        if a.shape != b.shape:
            return f"with fewer channels an output has the shape {tuple(a.shape)} instead of {tuple(b.shape)}"
        if not a.is_floating_point():
            continue
        a, b = a.double(), b.double()
        finite = a.isfinite() & b.isfinite()
        if not finite.any():
            continue
        scale = b[finite].abs().max().item() + 1e-12
        if (a[finite] - b[finite]).abs().max().item() > _tolerance(found) * scale:
            return "with fewer channels the output is not that of the model with these channels set to zero"
    return None


def _tolerance(outputs: Sequence[torch.Tensor]) -> float:
    """Relative to the largest output; rounding in narrow types must not look like a mismatch."""
    half = any(t.dtype in (torch.float16, torch.bfloat16) for t in outputs)
    return 0.1 if half else 2e-3
