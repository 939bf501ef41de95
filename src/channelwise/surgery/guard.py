"""Holds the removed slots of a sparse model at zero, whoever writes to them."""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from channelwise.errors import InvalidArgumentError
from channelwise.surgery.clone import Companion
from channelwise.surgery.cuts import Cuts
from channelwise.surgery.normed import rescale
from channelwise.tensors import named_tensors


class SparseGuard(Companion):
    """Holds removed slots of one model at zero; lives in the model's ``__dict__`` and is its forward pre-hook.

    Gradients of removed slots are zeroed before anybody sees them, so that neither their norm nor an optimizer's
    momentum counts them. Values are zeroed after every step of an optimizer (some add noise), before a forward pass of
    the whole model, before a state dict is made and after one is loaded: whatever wrote to them, that pass does not
    compute with it. Parts of the model that are called by themselves zero nothing.

    A forward pass without gradients zeroes only if it can tell that a tensor was written to: filling all of them takes
    up to a third of a forward pass of one image. Writing through ``tensor.data`` cannot be told, so after a
    forward pass with gradients, when training writes, the next one zeroes in any case.

    Zeros are written through ``data``, too: an earlier forward pass has seen zeros there, so that its backward pass,
    which refuses tensors that were written to since, may still come.

    It keeps the guarded parameters themselves, so that a copied or unpickled guard finds the copied or unpickled
    parameters and hooks them at once, before anybody trains them.
    """

    def __init__(
        self,
        cuts: Cuts,
        masks: Mapping[str, torch.Tensor],
        guarded: Iterable[tuple[str, nn.Parameter]] = (),
    ) -> None:
        self.cuts = cuts
        self.masks = dict(masks)
        self._root = 0
        self._trained = False
        self._unguarded = False
        self._used: tuple[float, str] | None = None
        self._watched: list[_Watched] = []
        self._parts: list[tuple[Mapping[str, Any], str, nn.Module | None]] = []
        self._hooked: dict[int, tuple[str, nn.Parameter, RemovableHandle]] = {}
        self._hook(guarded)
        _guards.add(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> SparseGuard:
        return SparseGuard(self.cuts, self.masks, copy.deepcopy(self._guarded(), memo))

    def __reduce__(self) -> tuple[Any, ...]:
        return SparseGuard, (self.cuts, {name: mask.cpu() for name, mask in self.masks.items()}, self._guarded())

    def __call__(self, module: nn.Module, args: Any) -> None:
        # A compiled pass is a program of its own, and replicas of DataParallel hold copies, whose gradients flow into
        # the hooked parameters.
        if torch.compiler.is_compiling() or module.__dict__.get("_is_replica", False):
            self._unguarded = True
            return
        trains = module.training or torch.is_grad_enabled()
        if trains or self._may_hold_values(module):
            self.zero(module)
            self._used = None
        self._trained = trains

    def _may_hold_values(self, module: nn.Module) -> bool:
        """Whether something may have been written to removed slots since they were zeroed."""
        return self._trained or self._rebuilt(module) or any(map(_Watched.changed, self._watched))

    def _rebuilt(self, module: nn.Module) -> bool:
        """Whether ``module`` is another than was watched, or has other parts or tensors."""
        return (
            self._root != id(module)
            or any(map(_Watched.replaced, self._watched))
            or any(store.get(key) is not part for store, key, part in self._parts)
        )

    def watch(self, module: nn.Module) -> None:
        """Hook the gradients of the parameters of ``module`` that lost slots, and of no others."""
        self._root = id(module)
        self._watched, self._parts = [], []
        found: dict[int, tuple[str, nn.Parameter]] = {}
        for path, owner in module.named_modules(remove_duplicate=False):
            self._parts += [(owner._modules, key, part) for key, part in owner._modules.items()]
            for store in (owner._parameters, owner._buffers):
                for key, tensor in store.items():
                    name = self._fits(f"{path}.{key}" if path else key, tensor)
                    if name is None or tensor is None:
                        continue
                    self._watched.append(_Watched(store, key, tensor, name))
                    if isinstance(tensor, nn.Parameter) and tensor.is_leaf:
                        found[id(tensor)] = (name, tensor)
        for gone in self._hooked.keys() - found.keys():
            self._hooked.pop(gone)[2].remove()
        self._hook(found.values())

    def zero(self, module: nn.Module) -> None:
        """Set the removed slots of parameters and buffers of ``module`` to zero, in place."""
        new = self._rebuilt(module)
        if new:
            self.watch(module)
        for watched in self._watched:
            # Tensors that functions such as vmap put in the place of parameters have no `data`.
            with torch.no_grad():
                self._fill(watched.name, watched.tensor if new else watched.tensor.data)
            watched.version = _version(watched.tensor)
        self._trained = self._unguarded = False

    def zero_parameters(self, of: set[int]) -> None:
        """Set the removed slots of those guarded parameters to zero whose ids these are."""
        for name, parameter, _ in self._hooked.values():
            if id(parameter) in of:
                self._fill(name, parameter.data)

    def refuse_used_values(self, module: nn.Module) -> None:
        """Raise InvalidArgumentError if ``module`` may have computed with values in removed slots.

        Values that the next forward pass would set to zero are of no account.
        """
        largest, where = self._used or self._used_values(module)
        if where:
            raise InvalidArgumentError(
                f"the removed channels of {where} hold values up to {largest:.3g}, and the model may have computed "
                "with them: the slim model would be another one. They were written through tensor.data, or for a "
                "compiled or DataParallel model, where they are not seen. Write zeros there, or in place (`with "
                "torch.no_grad(): tensor.copy_(...)`). To drop them, call model.load_state_dict(model.state_dict())"
            )

    def save(self, module: nn.Module) -> None:
        """Set the removed slots to zero for a state dict; what the model may have computed with is remembered."""
        used = self._used or self._used_values(module)
        self.zero(module)
        self._used = used if used[1] else None

    def _used_values(self, module: nn.Module) -> tuple[float, str]:
        """The largest value in removed slots that the model may have computed with, and the tensor; "" if none."""
        largest, where = 0.0, ""
        if self._may_hold_values(module) and not self._unguarded:
            return largest, where
        for path, tensor in named_tensors(module).items():
            name = self._fits(path, tensor)
            if name is not None and tensor.numel():
                found = float(tensor.detach().masked_fill(~self._mask(name, tensor), 0).abs().max())
                if found > largest or math.isnan(found):
                    largest, where = found, path
        return largest, where

    def forget(self) -> None:
        """What the model computed with is of no account any more: it has other weights."""
        self._used = None

    def _fill(self, name: str, tensor: torch.Tensor) -> None:
        tensor.masked_fill_(self._mask(name, tensor), 0)

    def _mask(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        if self.masks[name].device != tensor.device:
            self.masks[name] = self.masks[name].to(tensor.device)
        return self.masks[name]

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


class _Watched:
    """A tensor with removed slots where it hangs on a module, and its version when they were zeroed."""

    __slots__ = ("key", "name", "store", "tensor", "version")

    def __init__(self, store: Mapping[str, Any], key: str, tensor: torch.Tensor, name: str) -> None:
        self.store, self.key, self.tensor, self.name = store, key, tensor, name
        self.version = -1

    def replaced(self) -> bool:
        return self.store.get(self.key) is not self.tensor

    def changed(self) -> bool:
        return self.replaced() or _version(self.tensor) != self.version


def _version(tensor: torch.Tensor) -> int:
    """How often a tensor was written to, as far as it is known: not through ``data``."""
    return 0 if tensor.is_inference() else tensor._version


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


class ZeroAfterLoading(Companion):
    """``load_state_dict`` post hook: loaded dense weights lose their removed slots again."""

    def __init__(self, guard: SparseGuard) -> None:
        self.guard = guard

    def __call__(self, module: nn.Module, incompatible_keys: Any) -> None:
        rescale(module, self.guard.cuts)
        self.guard.zero(module)
        self.guard.forget()


class ZeroBeforeSaving(Companion):
    """``state_dict`` pre-hook: what was written to removed slots since the last forward pass is not saved."""

    def __init__(self, guard: SparseGuard) -> None:
        self.guard = guard

    def __call__(self, module: nn.Module, prefix: str, keep_vars: bool) -> None:
        self.guard.save(module)


_guards: weakref.WeakSet[SparseGuard] = weakref.WeakSet()


def _zero_after_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    if _guards and not torch.compiler.is_compiling():
        stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for guard in list(_guards):
            guard.zero_parameters(stepped)


register_optimizer_step_post_hook(_zero_after_step)
