"""The slim model: the user's own classes with smaller tensors and corrected attributes, and nothing added."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import nn

from channelwise.errors import InvalidArgumentError
from channelwise.selection import Selection, removed_channels
from channelwise.structure import Structure
from channelwise.surgery.attributes import fix_attributes, resized_modules
from channelwise.surgery.clone import Companion, clone_module, like_parameter, own_classes, stand_in
from channelwise.surgery.cuts import Cut, Cuts, cut_tensors
from channelwise.surgery.normed import filled, rescaled
from channelwise.surgery.slicing import NUMBERS, check_shape, map_state, placed, scatter, take, tensors_of
from channelwise.tensors import named_tensors


def slim_model(
    model: nn.Module,
    structure: Structure,
    selection: Selection,
    *,
    share_untouched: bool = False,
    restore: Callable[[nn.Module], None] | None = None,
) -> nn.Module:
    """A copy of ``model`` without the channels that ``selection`` removes.

    Device, dtype, memory format, training flags and ``requires_grad`` stay; ``model`` is not changed.

    Arguments:
        share_untouched: parameters that lose nothing are those of ``model`` itself instead of copies: quicker, and
            right for a candidate that is only evaluated. Buffers are always copied.
        restore: called with the copy before its attributes are corrected, to give it those of the full model.

    Raises:
        InvalidArgumentError: the selection or the model does not fit the structure.
    """
    cuts = cut_tensors(structure, selection)
    replace: dict[int, torch.Tensor] = {}
    shapes: dict[int, tuple[int, ...]] = {}
    with torch.inference_mode(False), torch.no_grad():
        scales = rescaled(named_tensors(model), cuts)
        for name, tensor in tensors_of(model, {**cuts.tensors, **scales}, cuts).items():
            cut, data = cuts.tensors.get(name), scales.get(name, tensor)
            replace[id(tensor)] = stand_in(tensor, data if cut is None else take(data, cut))
            shapes[id(tensor)] = tuple(tensor.shape) if cut is None else cut.shape
    if share_untouched:
        replace = {**{id(p): p for p in model.parameters()}, **replace}
    slim = clone_module(model, replace)
    if not share_untouched:
        own_classes(slim)
    if restore is not None:
        restore(slim)
    fix_attributes(slim, resized_modules(model, shapes), structure, {n: len(k) for n, k in selection.kept.items()})
    return slim


def check_slim(slim: nn.Module, structure: Structure, selection: Selection) -> None:
    """Raise InvalidArgumentError unless the parameters of ``slim`` have the sizes that the selection leaves."""
    removed_channels(structure, selection)
    counts = selection.counts()
    for name, parameter in slim.named_parameters():
        sizes = structure.tensor_sizes.get(structure.aliases.get(name, name))
        if sizes is not None:
            check_shape(name, tuple(parameter.shape), tuple(size(counts) for size in sizes))


def own_parameters(slim: nn.Module, model: nn.Module, names: Collection[str]) -> None:
    """Give ``slim`` copies of the parameters ``names`` that it shares with ``model``; what is tied stays tied."""
    shared = {id(p) for p in model.parameters()}
    copies = {
        id(p): like_parameter(p, p.detach().clone())
        for name, p in slim.named_parameters(remove_duplicate=False)
        if name in names and id(p) in shared
    }
    if not copies:
        return
    for module in slim.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in copies:
                module._parameters[name] = copies[id(parameter)]


def sparse_state_dict(
    slim_state: Mapping[str, Any],
    structure: Structure,
    selection: Selection,
    like: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The state dict of the original's shapes from that of the slim model: removed slots are zero.

    Arguments:
        like: a state dict of the original model. Slots of whole-number buffers (indices, counters), where zero is not
            the same as nothing, then keep its values; without it they are zero too. So do directions of weight norm, of
            which zero would give 0 / 0; without it they are ones if ``slim_state`` has the metadata of a state dict.
    """
    return _spread(slim_state, cut_tensors(structure, selection), like)


def _spread(slim_state: Mapping[str, Any], cuts: Cuts, like: Mapping[str, Any] | None = None) -> dict[str, Any]:
    for name, value in slim_state.items():
        expected = cuts.shape_of(name)
        if isinstance(value, torch.Tensor) and expected is not None and cuts.of(name) is None:
            check_shape(name, tuple(value.shape), expected)

    def spread(value: torch.Tensor, cut: Cut) -> torch.Tensor:
        wide = scatter(value, cut)
        if like is not None and not (wide.is_floating_point() or wide.is_complex()):
            if cut.info.name not in like:
                raise InvalidArgumentError(f"the state dict given as `like` lacks {cut.info.name}")
            lost = scatter(torch.ones_like(value, dtype=torch.bool), cut).logical_not()
            wide = torch.where(lost, like[cut.info.name].to(wide), wide)
        if like is None and getattr(slim_state, "_metadata", None) is None:
            # Gradients, for example: only a model divides.
            return wide
        return filled(wide, cut, cuts, None if like is None else like.get(cut.info.name))

    wide = map_state(slim_state, cuts, spread)
    for entry in getattr(wide, "_metadata", {}).values():
        entry.pop(NUMBERS, None)
    return wide


class SparseStateDict(Companion):
    """``slim.sparse_state_dict()``: the slim model's weights in the original's shapes, zeros where channels went.

    The arguments mean what they mean to `torch.nn.Module.state_dict`.
    """

    def __init__(self, model: nn.Module, cuts: Cuts) -> None:
        self.model = model
        self.cuts = cuts

    def __call__(self, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> dict[str, Any]:
        return placed(_spread(self.model.state_dict(keep_vars=keep_vars), self.cuts), destination, prefix)


def attach_sparse_state_dict(slim: nn.Module, structure: Structure, selection: Selection) -> nn.Module:
    """Give ``slim`` the method ``sparse_state_dict()``; it survives ``deepcopy`` and pickle. Returns ``slim``."""
    slim.__dict__["sparse_state_dict"] = SparseStateDict(slim, cut_tensors(structure, selection))
    return slim
