"""The supernet: a copy of the model whose layers are dynamic, sorted so that every subnet is a set of prefixes."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from channelwise.errors import InvalidArgumentError
from channelwise.inputs.check import SUPERNET, describe
from channelwise.methods.ofa.kernels import ElasticKernel
from channelwise.methods.ofa.plan import ModulePlan, Plans
from channelwise.methods.ofa.space import SearchSpace
from channelwise.selection import Selection
from channelwise.structure import Structure
from channelwise.surgery.clone import stand_in
from channelwise.surgery.fixers import kernel_attributes
from channelwise.surgery.slim import slim_model

ACTIVE = "_channelwise_active"
"""The attribute that says which subnet it runs: the values of all choices."""

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


class Supernet:
    """Knows what every subnet of a network is; holds no weights. Its models are what `build_supernet` made, or copies.

    ``built`` is the search space it was made with, ``space`` the one that is left to sampling and searches. ``orders``
    says by group which channel (size,) of the original network went to each place.
    """

    def __init__(
        self, structure: Structure, space: SearchSpace, plans: Plans, orders: Mapping[str, np.ndarray]
    ) -> None:
        self.structure = structure
        self.orders = orders
        self.built = space
        self.space = space
        self.digest = space.digest()
        self._plans = plans
        self._modules: weakref.WeakKeyDictionary[nn.Module, list[nn.Module]] = weakref.WeakKeyDictionary()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_modules": None}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._modules = weakref.WeakKeyDictionary()

    def activate(self, model: nn.Module, values: np.ndarray) -> None:
        """Make the subnet with these values (choices,) the one that ``model`` runs, in place."""
        self._plans.activate(self.modules_of(model), values.tolist())
        bare(model).__dict__[ACTIVE] = values.tolist()

    def active(self, model: nn.Module) -> np.ndarray:
        """The values (choices,) of the subnet that ``model`` runs."""
        self.modules_of(model)
        active = bare(model).__dict__.get(ACTIVE)
        return self.built.maximum if active is None else np.array(active, int)

    def extract(self, model: nn.Module, values: np.ndarray, *, share_untouched: bool = False) -> nn.Module:
        """The subnet as a plain model of the user's own classes. ``model`` is not changed, whatever it runs.

        Arguments:
            share_untouched: parameters that lose nothing are those of ``model``; see `slim_model`.
        """
        inner = bare(model)
        self.modules_of(inner)
        selection = self.selection(values)
        static = slim_model(
            inner, self.structure, selection, share_untouched=share_untouched, restore=self._made_static
        )
        for name, side in self.built.kernels(values).items():
            _give_kernel(static.get_submodule(name), self._plan(name), side)
        return static

    def values(self, named: Mapping[str, int]) -> np.ndarray:
        """Values (choices,) from those by name of the choice."""
        return np.array([named[name] for name in self.built.names], int)

    def selection(self, values: np.ndarray) -> Selection:
        """The channels of the sorted network that a subnet has."""
        return self._plans.prefixes.selection(values[: len(self.structure.groups)])

    def original_selection(self, values: np.ndarray) -> Selection:
        """The same channels, as they are called in the original network."""
        kept = dict(self.selection(values).kept)
        for name, order in self.orders.items():
            kept[name] = np.sort(order[kept[name]])
        return Selection(kept).of(self.structure)

    def modules_of(self, model: nn.Module) -> list[nn.Module]:
        """The modules of a supernet that depend on a choice.

        Raises:
            InvalidArgumentError: ``model`` is not a supernet of this network.
        """
        inner = bare(model)
        found = self._modules.get(inner)
        if found is None:
            modules = dict(inner.named_modules())
            found = [_module(modules, plan, inner) for plan in self._plans.modules]
            self._modules[inner] = found
        return found

    def _plan(self, name: str) -> ModulePlan:
        return next(plan for plan in self._plans.modules if plan.name == name)

    def _made_static(self, clone: nn.Module) -> None:
        clone.__dict__.pop(SUPERNET, None)
        clone.__dict__.pop(ACTIVE, None)
        modules = dict(clone.named_modules())
        for plan in self._plans.modules:
            module = modules[plan.name]
            module.__dict__.update(plan.original)
            if plan.tensors:
                module.__dict__.pop("_active", None)
                module.__dict__.pop("_normed", None)
                module.__class__ = plan.cls


def bare(model: Any) -> nn.Module:
    """The model without wrappers: those of parallel training, ``torch.compile``, or one around a supernet (an EMA)."""
    while True:
        if not isinstance(model, nn.Module):
            raise InvalidArgumentError(f"ofa_model must be the model that ofa_model() returned, not {describe(model)}.")
        inner = model._modules.get("_orig_mod", model._modules.get("module"))
        if SUPERNET in model.__dict__ or inner is None:
            return model
        if (
            not isinstance(model, _WRAPPERS)
            and "_orig_mod" not in model._modules
            and SUPERNET not in bare(inner).__dict__
        ):
            return model
        model = inner


def _module(modules: Mapping[str, nn.Module], plan: ModulePlan, model: nn.Module) -> nn.Module:
    module = modules.get(plan.name)
    if module is None or not isinstance(module, plan.dynamic):
        raise InvalidArgumentError(
            f"ofa_model is not a supernet of this pruner: {plan.name or type(model).__name__} is "
            f"{'missing' if module is None else type(module).__name__}. Give the model that pruner.ofa_model() "
            "returned, a copy of it, or a wrapper around one."
        )
    return module


def _give_kernel(conv: Any, plan: ModulePlan, side: int) -> None:
    """Make a static convolution out of one with an elastic kernel."""
    conv.__dict__.update(kernel_attributes(plan.original, conv.dilation, side))
    with torch.inference_mode(False), torch.no_grad():
        weight = ElasticKernel.shrunk(conv, conv.weight)
    conv._parameters["weight"] = stand_in(conv.weight, weight.clone() if weight is conv.weight else weight)
    ElasticKernel.remove_matrices(conv)
