"""Norms of sparse and masked models count the kept channels only: where channels are zero, they are not there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from channelwise.selection import Selection, removed_channels
from channelwise.structure import Norm, Structure
from channelwise.surgery.attributes import corrected_attributes, resized_calls, resized_modules
from channelwise.surgery.clone import NORM, Companion
from channelwise.surgery.cuts import Cuts
from channelwise.surgery.slicing import SlotIndex
from channelwise.tensors import named_tensors


def count_only_kept(model: nn.Module, structure: Structure, selection: Selection, cuts: Cuts) -> None:
    """Give the norms of ``model`` that see removed channels hooks by which they count the kept ones only."""
    if not structure.norms:
        return
    removed = removed_channels(structure, selection)
    norms = [norm for norm in structure.norms if not removed.keys().isdisjoint(norm.channels)]
    if not norms:
        return
    modules = dict(model.named_modules())
    shapes = {id(t): cut.shape for n, t in named_tensors(model).items() if (cut := cuts.of(n)) is not None}
    resized = resized_modules(model, shapes)
    calls = resized_calls(structure, {name: len(kept) for name, kept in selection.kept.items()})
    for norm in norms:
        module = modules[norm.module]
        tensors = {}
        for name in module._parameters:
            cut = cuts.of(f"{norm.module}.{name}")
            if cut is not None:
                tensors[name] = dict(cut.kept)
        attributes = corrected_attributes(
            module, resized.get(norm.module), calls.get(norm.module), cuts.numbers.get(norm.module, {})
        )
        companion = CountsKept(norm, _kept(norm, removed), tensors, attributes)
        module.__dict__[NORM] = companion
        # Before the user's hooks, which see what comes of it.
        module.register_forward_hook(companion, prepend=True, with_kwargs=True)


def _kept(norm: Norm, removed: Mapping[str, np.ndarray]) -> np.ndarray:
    """Indices along the norm's axis that stay, sorted."""
    stays = np.ones(norm.length, bool)
    for group, (index, channel) in norm.channels.items():
        if group in removed:
            stays[index[np.isin(channel, removed[group])]] = False
    return np.flatnonzero(stays)


class CountsKept(Companion):
    """Forward hook of a norm: its result is that of its own code on the kept channels, and zero elsewhere.

    The code runs on a passing twin of the module, with the attributes and the slots that it has in the slim model. The
    module itself, which may be a replica of DataParallel or be used by several threads, is only read.
    """

    def __init__(
        self,
        norm: Norm,
        kept: np.ndarray,
        tensors: Mapping[str, Mapping[int, np.ndarray]],
        attributes: Mapping[str, Any],
    ) -> None:
        self.axes, self.length = (norm.input_axis, norm.output_axis), norm.length
        self.kept = SlotIndex(kept)
        self.tensors = {
            name: {axis: SlotIndex(slots) for axis, slots in axes.items()} for name, axes in tensors.items()
        }
        self.attributes = dict(attributes)

    def __deepcopy__(self, memo: Any) -> CountsKept:
        return self

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: torch.Tensor) -> torch.Tensor:
        x = args[0]
        into, out = self.axes
        if x.shape[into] != self.length:
            # The user has put layers of another width here.
            return output
        kept = self.kept.on(x.device)
        twin = object.__new__(type(module))
        twin.__dict__.update(module.__dict__)
        twin.__dict__.update(self.attributes)
        for name, axes in self.tensors.items():
            tensor = getattr(module, name)
            for axis, slots in axes.items():
                tensor = tensor.index_select(axis, slots.on(tensor.device))
            twin.__dict__[name] = tensor
        counted = twin.forward(x.index_select(into, kept), *args[1:], **kwargs)
        # In the layout of the module's own result, which views of it may rely on.
        return torch.zeros_like(output).index_copy_(out, kept, counted)
