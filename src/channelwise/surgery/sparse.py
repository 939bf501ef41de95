"""The sparse model: original shapes, removed slots at exactly zero through any training; and the masked model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from channelwise.errors import InvalidArgumentError
from channelwise.selection import Selection
from channelwise.structure import Structure
from channelwise.surgery.clone import GUARD, Companion, clone_module, own_classes, stand_in
from channelwise.surgery.counting_norms import count_only_kept
from channelwise.surgery.cuts import Cuts, cut_tensors
from channelwise.surgery.guard import SparseGuard, ZeroAfterLoading, ZeroBeforeSaving
from channelwise.surgery.normed import rescaled, sparse_mask
from channelwise.surgery.slicing import placed, slim_state, tensors_of
from channelwise.tensors import named_tensors

Masks = Mapping[str, torch.Tensor]


def masked_model(model: nn.Module, structure: Structure, selection: Selection) -> nn.Module:
    """A copy of ``model`` whose removed slots of floating and complex parameters and buffers are zero now.

    What a slim model is compared with: norms count only the kept channels. Nothing holds the zeros, see `sparse_model`.
    """
    cuts = cut_tensors(structure, selection)
    masked = _masked(model, cuts, _masks(model, cuts))
    count_only_kept(masked, structure, selection, cuts)
    return masked


def sparse_model(model: nn.Module, structure: Structure, selection: Selection) -> nn.Module:
    """A copy of ``model`` whose removed slots are exactly zero and stay so in training.

    The copy has the user's classes, shapes and ``state_dict`` keys. `SparseGuard` says how it is held at zero. Norms
    whose statistics are taken over channels count the kept ones only, by a forward hook. All this survives
    ``deepcopy``, pickle, ``.to()``, DataParallel and DistributedDataParallel. The copy gets the method
    ``slim_state_dict()``.

    Raises:
        InvalidArgumentError: the selection removes channels of groups for which zeroing is not the same as removing.
    """
    _refuse_inexact(structure, selection)
    cuts = cut_tensors(structure, selection)
    masks = _masks(model, cuts)
    sparse = _masked(model, cuts, masks)
    count_only_kept(sparse, structure, selection, cuts)
    guard = SparseGuard(cuts, masks)
    guard.watch(sparse)
    sparse.__dict__[GUARD] = guard
    sparse.__dict__["slim_state_dict"] = SlimStateDict(sparse, cuts)
    sparse.register_forward_pre_hook(guard)
    sparse.register_load_state_dict_post_hook(ZeroAfterLoading(guard))
    sparse.register_state_dict_pre_hook(ZeroBeforeSaving(guard))
    return sparse


def _refuse_inexact(structure: Structure, selection: Selection) -> None:
    inexact = [g for g in structure.groups if g.slim_only and len(selection.kept.get(g.name, ())) != g.size]
    if inexact:
        named = "; ".join(f"{g.name} ({g.inexact_because or 'zeroing differs from removing'})" for g in inexact)
        raise InvalidArgumentError(
            f"a sparse model cannot stand for the removal of channels of {named}. "
            "Use the slim model, or exclude these groups"
        )


def _masks(model: nn.Module, cuts: Cuts) -> dict[str, torch.Tensor]:
    masks = {}
    for name, tensor in tensors_of(model, cuts.tensors, cuts).items():
        if tensor.is_floating_point() or tensor.is_complex():
            mask = sparse_mask(cuts.tensors[name], cuts)
            if mask.any():
                masks[name] = mask
    return masks


def _masked(model: nn.Module, cuts: Cuts, masks: Masks) -> nn.Module:
    replace: dict[int, torch.Tensor] = {}
    with torch.inference_mode(False), torch.no_grad():
        scales = rescaled(named_tensors(model), cuts)
        for name, tensor in tensors_of(model, {**masks, **scales}, cuts).items():
            data = scales.get(name, tensor).detach().clone()
            if name in masks:
                data.masked_fill_(masks[name].to(tensor.device), 0)
            replace[id(tensor)] = stand_in(tensor, data)
    return own_classes(clone_module(model, replace))


class SlimStateDict(Companion):
    """``sparse.slim_state_dict()``: the weights without the removed slots, for the slim model.

    The arguments mean what they mean to `torch.nn.Module.state_dict`.

    Raises InvalidArgumentError if the model computed with values in removed slots: the slim model would be another.
    """

    def __init__(self, model: nn.Module, cuts: Cuts) -> None:
        self.model = model
        self.cuts = cuts

    def __call__(self, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> dict[str, Any]:
        guard: SparseGuard = self.model.__dict__[GUARD]
        guard.refuse_used_values(self.model)
        return placed(slim_state(self.model.state_dict(keep_vars=keep_vars), self.cuts), destination, prefix)
