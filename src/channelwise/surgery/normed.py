"""Weights that are divided by a norm of themselves: what is left of them has to be divided by what it was before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from channelwise.structure import NormedWeight
from channelwise.surgery.cuts import Cut, Cuts
from channelwise.surgery.masks import removed_mask
from channelwise.tensors import at_least_single, named_tensors


def rescaled(tensors: Mapping[str, torch.Tensor], cuts: Cuts) -> dict[str, torch.Tensor]:
    """By name, the scales that make up for the slots that ``cuts`` removes from normed weights; all of full shape.

    ``tensors`` may be those of the original or of a sparse model, whose scales do already. What is missing among them,
    or has another shape, is left out.
    """
    found = {}
    with torch.no_grad():
        for one in cuts.normed:
            names = one.names
            fits = all(name in tensors and tuple(tensors[name].shape) == cuts.shapes[name] for name in names)
            if fits and not cuts.tensors.keys().isdisjoint(names):
                full = [tensors[name].detach() for name in names]
                new = new_scale(one, full, [_left(name, t, cuts) for name, t in zip(names, full, strict=True)])
                if not torch.equal(new, tensors[one.scale]):
                    found[one.scale] = new
    return found


def rescale(model: nn.Module, cuts: Cuts) -> None:
    """The same, in place, for a model of the original's shapes in which slots are about to be set to zero."""
    if cuts.normed:
        present = {cuts.aliases.get(path, path): tensor for path, tensor in named_tensors(model).items()}
        for name, scale in rescaled(present, cuts).items():
            present[name].data.copy_(scale)


def rescaled_state(state: Mapping[str, Any], cuts: Cuts) -> Mapping[str, Any]:
    """The same for a state dict, which stays as it is."""
    if not cuts.normed:
        return state
    names = {key: cuts.aliases.get(key, key) for key, value in state.items() if isinstance(value, torch.Tensor)}
    scales = rescaled({name: state[key] for key, name in names.items()}, cuts)
    if not scales:
        return state
    changed = type(state)() if isinstance(state, dict) else {}
    changed.update((key, scales.get(names.get(key, ""), value)) for key, value in state.items())
    if hasattr(state, "_metadata"):
        changed._metadata = state._metadata  # type: ignore[attr-defined]
    return changed


def _left(name: str, tensor: torch.Tensor, cuts: Cuts) -> torch.Tensor:
    cut = cuts.tensors.get(name)
    return tensor if cut is None else tensor.masked_fill(removed_mask(cut).to(tensor.device), 0)


def new_scale(one: NormedWeight, full: Sequence[torch.Tensor], left: Sequence[torch.Tensor]) -> torch.Tensor:
    """The scale with which what is left of a weight is what it was.

    ``full`` are the weight, the scale and, of spectral norm, the right vector; ``left`` the same with zeros in removed
    slots.
    """
    change = _weight_norm if one.right is None else _spectral_norm
    return change(one, [*map(at_least_single, full)], [*map(at_least_single, left)]).to(full[1].dtype)


def _weight_norm(one: NormedWeight, full: list[torch.Tensor], left: list[torch.Tensor]) -> torch.Tensor:
    """g ‖what is left of v‖ / ‖v‖, norms as `torch.norm_except_dim` takes them."""
    before, after = (torch.norm_except_dim(v, 2, -1 if one.axis is None else one.axis) for v in (full[0], left[0]))
    return torch.where(before == 0, full[1], full[1] * (after / before))


def _spectral_norm(one: NormedWeight, full: list[torch.Tensor], left: list[torch.Tensor]) -> torch.Tensor:
    """The vector u for which uᵀ W v stays what it was."""
    wanted = torch.dot(full[1], _matrix(full[0], one.axis) @ full[2])
    product = _matrix(left[0], one.axis) @ left[2]
    found = torch.dot(left[1], product)
    if found.abs() > 1e-3 * wanted.abs():
        return left[1] * (wanted / found)
    # The vectors hardly see what is left: a step of the power method gives one that does.
    square = product.square().sum()
    return product * (wanted / square) if square > 0 else full[1]


def _matrix(weight: torch.Tensor, axis: int | None) -> torch.Tensor:
    return weight.movedim(axis or 0, 0).flatten(1)


def sparse_mask(cut: Cut, cuts: Cuts) -> torch.Tensor:
    """Where a sparse model holds zeros, as `removed_mask`; weights keep slots whose norms would divide zero by zero."""
    return removed_mask(cut, besides=_divided(cuts).get(cut.info.name))


def filled(wide: torch.Tensor, cut: Cut, cuts: Cuts, like: torch.Tensor | None) -> torch.Tensor:
    """``wide``, of zeros where slots were removed, with those slots that sparse models keep: of ``like``, or ones."""
    axis = _divided(cuts).get(cut.info.name)
    if axis is None or axis not in cut.axes:
        return wide
    values = torch.ones_like(wide) if like is None else like.to(wide)
    values = values.masked_fill(sparse_mask(cut, cuts).to(wide.device), 0)
    stays = torch.from_numpy(cut.axes[axis]).to(wide.device)
    return values.index_copy(axis, stays, wide.index_select(axis, stays))


def _divided(cuts: Cuts) -> dict[str, int]:
    return {one.weight: one.axis for one in cuts.normed if one.right is None and one.axis is not None}
