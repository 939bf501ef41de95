"""The sparse model: original shapes, removed slots at exactly zero through any training; and the masked model."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from channelwise.errors import InvalidArgumentError
from channelwise.selection import Selection
from channelwise.structure import Structure
from channelwise.surgery.clone import GUARD, Companion, clone_module, stand_in
from channelwise.surgery.counting_norms import count_only_kept
from channelwise.surgery.cuts import Cuts, cut_tensors
from channelwise.surgery.slicing import removed_mask, slim_state, tensors_of
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

    The copy has the user's classes, shapes and ``state_dict`` keys. Gradients of removed slots are zeroed before
    anybody sees them, so that any optimizer whose update of a zero weight with zero gradients is zero leaves them
    alone (SGD with momentum and weight decay, Adam, AdamW, …); loading dense weights zeroes them again. Norms whose
    statistics are taken over channels count the kept ones only, by a forward hook. All this survives
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
    sparse.register_load_state_dict_post_hook(_ZeroAfterLoading(guard))
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
            masks[name] = removed_mask(cuts.tensors[name])
    return masks


def _masked(model: nn.Module, cuts: Cuts, masks: Masks) -> nn.Module:
    replace: dict[int, torch.Tensor] = {}
    with torch.inference_mode(False), torch.no_grad():
        for name, tensor in tensors_of(model, masks, cuts).items():
            data = tensor.detach().clone().masked_fill_(masks[name].to(tensor.device), 0)
            replace[id(tensor)] = stand_in(tensor, data)
    return clone_module(model, replace)


class _ZeroGradient:
    """Tensor hook that zeroes the gradient of removed slots. It fills instead of multiplying: AMP overflows are inf."""

    def __init__(self, mask: torch.Tensor) -> None:
        self.mask = mask

    def __call__(self, grad: torch.Tensor) -> torch.Tensor:
        if self.mask.device != grad.device:
            self.mask = self.mask.to(grad.device)
        if grad.is_sparse:
            return grad.to_dense().masked_fill(self.mask, 0).to_sparse(grad.sparse_dim())
        return grad.masked_fill(self.mask, 0)


class SparseGuard(Companion):
    """Holds removed slots of one model at zero; lives in the model's ``__dict__`` and is its forward pre-hook.

    It keeps the guarded parameters themselves, so that a copied or unpickled guard finds the copied or unpickled
    parameters and hooks them at once, before anybody trains them. The forward pre-hook catches parameters that were
    replaced later: it only compares identities, some microseconds for a large model.
    """

    def __init__(self, cuts: Cuts, masks: Masks, guarded: Iterable[tuple[str, nn.Parameter]] = ()) -> None:
        self.cuts = cuts
        self.masks = dict(masks)
        self._root = 0
        self._places: list[tuple[dict[str, Any], str, nn.Parameter]] = []
        self._hooked: dict[int, tuple[str, nn.Parameter, RemovableHandle]] = {}
        self._hook(guarded)

    def __deepcopy__(self, memo: dict[int, Any]) -> SparseGuard:
        return SparseGuard(self.cuts, self.masks, copy.deepcopy(self._guarded(), memo))

    def __reduce__(self) -> tuple[Any, ...]:
        return SparseGuard, (self.cuts, self.masks, self._guarded())

    def __call__(self, module: nn.Module, args: Any) -> None:
        # Replicas of DataParallel hold copies whose gradients flow into the hooked parameters.
        if torch.compiler.is_compiling() or module.__dict__.get("_is_replica", False):
            return
        if self._root != id(module):
            # A copy: its own parameters are hooked and zero already, those put in their place since are not.
            if self.watch(module):
                self.zero(module)
        elif any(store.get(key) is not parameter for store, key, parameter in self._places):
            self.watch(module)
            self.zero(module)

    def watch(self, module: nn.Module) -> bool:
        """Hook the gradients of the parameters of ``module`` that lost slots, and of no others.

        Returns whether there were any not hooked before.
        """
        self._root = id(module)
        self._places = []
        found: dict[int, tuple[str, nn.Parameter]] = {}
        for path, owner in module.named_modules(remove_duplicate=False):
            for key, parameter in owner._parameters.items():
                name = self._fits(f"{path}.{key}" if path else key, parameter)
                if name is not None and isinstance(parameter, nn.Parameter) and parameter.is_leaf:
                    self._places.append((owner._parameters, key, parameter))
                    found[id(parameter)] = (name, parameter)
        for gone in self._hooked.keys() - found.keys():
            self._hooked.pop(gone)[2].remove()
        new = not found.keys() <= self._hooked.keys()
        self._hook(found.values())
        return new

    def zero(self, module: nn.Module) -> None:
        """Set the removed slots of parameters and buffers of ``module`` to zero, in place."""
        with torch.no_grad():
            for path, tensor in named_tensors(module).items():
                name = self._fits(path, tensor)
                if name is not None:
                    tensor.masked_fill_(self.masks[name].to(tensor.device), 0)

    def _fits(self, path: str, tensor: torch.Tensor | None) -> str | None:
        """The name of the mask for a tensor, None if it lost nothing or the user put another shape in its place."""
        name = self.cuts.aliases.get(path, path)
        fits = tensor is not None and name in self.masks and tuple(tensor.shape) == self.cuts.shapes[name]
        return name if fits else None

    def _hook(self, guarded: Iterable[tuple[str, nn.Parameter]]) -> None:
        for name, parameter in guarded:
            if id(parameter) in self._hooked:
                continue
            trained = parameter.requires_grad
            # Frozen parameters are hooked too, as they may be trained later; a hook stays when the flag changes.
            parameter.requires_grad_(True)
            handle = parameter.register_hook(_ZeroGradient(self.masks[name]))
            parameter.requires_grad_(trained)
            self._hooked[id(parameter)] = (name, parameter, handle)

    def _guarded(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, parameter) for name, parameter, _ in self._hooked.values()]


class _ZeroAfterLoading(Companion):
    """``load_state_dict`` post hook: loaded dense weights lose their removed slots again."""

    def __init__(self, guard: SparseGuard) -> None:
        self.guard = guard

    def __call__(self, module: nn.Module, incompatible_keys: Any) -> None:
        self.guard.watch(module)
        self.guard.zero(module)


class SlimStateDict(Companion):
    """``sparse.slim_state_dict()``: the weights without the removed slots, for the slim model."""

    def __init__(self, model: nn.Module, cuts: Cuts) -> None:
        self.model = model
        self.cuts = cuts

    def __call__(self) -> dict[str, Any]:
        return slim_state(self.model.state_dict(), self.cuts)
