"""The last look: does the slim model give what the masked one gives? It may only freeze; it is expected never to."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from channelwise.inputs.example import is_constant, varied
from channelwise.selection import Selection
from channelwise.solve.build import Ban, Solution, build, group_labels
from channelwise.structure import Cause, Reason
from channelwise.surgery.clone import clone_module
from channelwise.surgery.slim import slim_model
from channelwise.surgery.sparse import masked_model
from channelwise.tensors import named_tensors
from channelwise.tracing.recording import Trace
from channelwise.verify.outputs import unlike
from channelwise.verify.selections import Pattern, kept_channels

logger = logging.getLogger(__name__)

NOTE = "tripwire"
"""How the note begins that a trace carries if outputs were not those of equal programs."""


def guarded(
    trace: Trace, solution: Solution, bans: Sequence[Ban], names: Collection[str], model: nn.Module, shared: bool,
    args: Sequence[Any], kwargs: Mapping[str, Any],
) -> Solution:  # fmt: skip
    """The same solution, or one in which these groups stay if a slim model's outputs are not those of the masked one.

    Equal programs have equal outputs as long as the rules are right. A difference is a rule to mend.
    """
    structure = solution.structure
    exact = [group.name for group in structure.groups if group.name in names and not group.slim_only]
    if not exact:
        return solution
    selection = Selection(kept_channels(structure, exact, Pattern.UPPER))
    model = _without_constants(model)
    args, kwargs = varied(args), varied(kwargs)

    def slim() -> nn.Module:
        return slim_model(model, structure, selection, share_untouched=shared)

    def masked() -> nn.Module:
        return masked_model(model, structure, selection)

    text = unlike(slim, masked, args, kwargs)
    if text is None:
        return solution
    note = f"{NOTE}: {text}, though the programs are the same; {len(exact)} groups stay. Please report this model."
    logger.warning("%s", note)
    reason = Reason("outputs", "", f"{text}, though the programs are the same", Cause.CODE)
    bans = [*bans, *((group_labels(trace, structure.group(name)), reason) for name in exact)]
    found = build(trace, bans)
    return replace(found, structure=replace(found.structure, notes=(*found.structure.notes, note)))


def _without_constants(model: nn.Module) -> nn.Module:
    """A copy whose constant tensors (fresh norms, zero-initialised gates) are random, so that no mismatch hides."""
    generator = torch.Generator().manual_seed(0)
    replaced: dict[int, torch.Tensor] = {id(p): p for p in model.parameters()}
    for tensor in named_tensors(model).values():
        if not tensor.is_floating_point() or tensor.numel() < 2 or not is_constant(tensor):
            continue
        values = (torch.rand(tensor.shape, generator=generator) * 0.5 + 0.75).to(tensor.device, tensor.dtype)
        is_parameter = isinstance(tensor, nn.Parameter)
        replaced[id(tensor)] = nn.Parameter(values, tensor.requires_grad) if is_parameter else values
    return clone_module(model, replaced).eval()
