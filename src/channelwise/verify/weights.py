"""Are weights that parametrisations give still slices of what they were? Where they are not, channels stay."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.nn.utils import parametrize

from channelwise.selection import Selection
from channelwise.solve.build import Ban, Solution, build, group_labels
from channelwise.structure import Cause, Reason, Structure
from channelwise.surgery.clone import clone_module
from channelwise.surgery.cuts import Cuts, cut_tensors
from channelwise.surgery.slicing import take
from channelwise.surgery.slim import slim_model
from channelwise.tracing.recording import Trace
from channelwise.verify.selections import Pattern, kept_channels

_CLOSE = 1e-3
"""Relative to the largest weight; what a norm of fewer weights changes is far more."""


def with_sliced_weights(
    trace: Trace, solution: Solution, bans: Sequence[Ban], model: nn.Module
) -> tuple[Solution, list[Ban]]:
    """The same solution and bans, with more where a parametrisation gives other weights for fewer channels.

    A norm of a whole weight is an example: without some inputs, what is kept is larger. Weight norm and spectral norm
    alone are made up for, see `NormedWeight`. What a module computes from its weights itself is its own affair.
    """
    bans = list(bans)
    if not any(map(parametrize.is_parametrized, model.modules())):
        return solution, bans
    while True:
        structure = solution.structure
        changed = _changed(model, structure)
        slots = [(group, slot) for group in structure.groups for slot in group.slots if slot.tensor in changed]
        if not slots:
            return solution, bans
        # A norm of every row does not see the others.
        of_inputs = [(group, slot) for group, slot in slots if slot.role == "input"]
        for group, slot in of_inputs or slots:
            text = "a parametrisation gives other weights for fewer channels"
            reason = Reason("parametrisation", changed[slot.tensor], text, Cause.CODE)
            bans.append((group_labels(trace, group), reason))
        solution = build(trace, bans)


def _changed(model: nn.Module, structure: Structure) -> dict[str, str]:
    """Tensors under parametrisations that give other weights in a slim model, and their modules."""
    selection = Selection(kept_channels(structure, structure.full(), Pattern.UPPER))
    cuts = cut_tensors(structure, selection)
    full = clone_module(model, {id(p): p for p in model.parameters()}).eval()
    slim = dict(slim_model(model, structure, selection, share_untouched=True).eval().named_modules())
    found = {}
    with torch.no_grad():
        for path, module in full.named_modules():
            for attribute, original in _parametrised(path, module, cuts):
                wanted = take(getattr(module, attribute), cuts.tensors[original])
                error = (getattr(slim[path], attribute) - wanted).abs().max()
                if not error <= _CLOSE * wanted.abs().max():
                    found[original] = path
    return found


def _parametrised(path: str, module: nn.Module, cuts: Cuts) -> Iterator[tuple[str, str]]:
    """Attributes of a module that parametrisations give, and the tensor of the same shape that each is made of."""
    if not parametrize.is_parametrized(module):
        return
    inside = f"{path}." if path else ""
    for attribute, made_of in module.parametrizations.items():  # type: ignore[union-attr, operator]
        shape = tuple(getattr(module, attribute).shape)
        for name, tensor in made_of.named_parameters(recurse=False):
            original = f"{inside}parametrizations.{attribute}.{name}"
            original = cuts.aliases.get(original, original)
            if original in cuts.tensors and tuple(tensor.shape) == shape:
                yield attribute, original
                break
