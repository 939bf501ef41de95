"""Copies of models in which some tensors are replaced; the original is never touched, replaced tensors never copied."""

from __future__ import annotations

import copy
import copyreg
from collections import Counter, OrderedDict
from collections.abc import Mapping
from functools import cache
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from channelwise.errors import UnsupportedModelError
from channelwise.surgery.closures import rebind_functions

# Where objects of channelwise hang on a module: they belong to that one model and are not carried over to a clone.
GUARD = "_channelwise_guard"
NORM = "_channelwise_norm"
ATTACHED = (GUARD, NORM, "slim_state_dict", "sparse_state_dict")

_CONTAINERS = frozenset({OrderedDict, list, set})
_DEEPCOPY = "__deepcopy__"
_ATOMS = frozenset({int, float, bool, str, type(None), type, FunctionType, BuiltinFunctionType})


class Companion:
    """Base of what channelwise attaches to a model: attributes on the instance (see ``ATTACHED``) and its hooks."""


class _DetachedCopies(TorchFunctionMode):
    """Lets ``copy.deepcopy`` meet any tensor: activations are cut from their graph, gradients left behind."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__deepcopy__:
            tensor = args[0]
            if not tensor.is_leaf or tensor.grad is not None:
                twin = tensor.detach().clone()
                if tensor.is_leaf:
                    twin.requires_grad_(tensor.requires_grad)
                return twin
        return func(*args, **(kwargs or {}))


def clone_module(model: nn.Module, replace: Mapping[int, torch.Tensor]) -> nn.Module:
    """A deep copy of ``model`` with the tensors of ``replace`` (id of a tensor -> what stands in its place).

    Shared tensors and modules stay shared; classes, attributes, training flags, ``requires_grad`` and the user's hooks
    come along; gradients do not, and what channelwise attached to the model itself (a sparse model's guard) does not.

    Raises:
        UnsupportedModelError: something that hangs on the model refuses to be copied, or would use the original.
    """
    memo: dict[int, Any] = dict(replace)
    parted = _leave_companions(model, memo)
    with torch.inference_mode(False), torch.no_grad():
        for tensor in model.parameters():
            # Parameter.__deepcopy__ loses attributes that users set on parameters.
            if id(tensor) not in memo and tensor.__dict__:
                memo[id(tensor)] = like_parameter(tensor, tensor.detach().clone())
        _copy_plain_buffers(model, memo)
        try:
            with _DetachedCopies():
                _copy_plain_modules(model, memo)
                clone = copy.deepcopy(model, memo)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise UnsupportedModelError(
                f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error}); "
                "copy.deepcopy(model) must work, so move what refuses out of the model"
            ) from error
    for original in parted:
        _drop_companions(memo[id(original)])
    rebind_functions(clone, memo)
    return clone


def own_classes(model: nn.Module) -> nn.Module:
    """Give parametrised modules of a copy classes of their own; returns ``model``.

    Torch makes a class for each of them, and folding a parametrisation takes the weight off the class.
    """
    for module in model.modules():
        if parametrize.is_parametrized(module):
            cls = type(module)
            members = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
            module.__class__ = type(cls.__name__, cls.__bases__, members)
    return model


def stand_in(tensor: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
    """``data`` as what takes the place of ``tensor`` in a module: a parameter of its class, or a buffer."""
    if isinstance(tensor, nn.Parameter):
        return like_parameter(tensor, data)
    return data.requires_grad_(tensor.requires_grad)


def like_parameter(parameter: nn.Parameter, data: torch.Tensor) -> nn.Parameter:
    """``data`` as a parameter of the same class, with the same ``requires_grad`` and attributes."""
    # Not type(parameter)(data): a subclass may have a constructor of its own.
    twin = torch.Tensor._make_subclass(type(parameter), data, parameter.requires_grad)
    if parameter.__dict__:
        twin.__dict__.update(parameter.__dict__)
    return twin


def _copy_plain_modules(model: nn.Module, memo: dict[int, Any]) -> None:
    """Copies all modules that have no way of their own of being copied; it takes 0.6 times as long as ``deepcopy``.

    It walks over many small objects; modules are mostly numbers, and empty dictionaries of hooks.
    """
    plain = [
        module
        for module in model.modules()
        if _is_plain(type(module)) and id(module) not in memo and _DEEPCOPY not in module.__dict__  # type: ignore[arg-type]
    ]
    for module in plain:
        memo[id(module)] = type(module).__new__(type(module))
    # Parts come after what they are part of, so that from the last to the first every module finds its parts filled.
    for module in reversed(plain):
        held = module.__getstate__() if hasattr(module, "__getstate__") else module.__dict__
        state = {name: _copied(value, memo) for name, value in held.items()}
        twin = memo[id(module)]
        if type(module).__setstate__ is nn.Module.__setstate__:
            twin.__dict__.update(state)
        else:
            twin.__setstate__(state)


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """What ``deepcopy`` gives, but quicker for what modules mostly hold."""
    kind = type(value)
    if kind in _ATOMS:
        return value
    known = memo.get(id(value))
    if known is not None:
        return known
    if kind is dict:
        twin = memo[id(value)] = {}
        for key, item in value.items():
            twin[key] = _copied(item, memo)
        return twin
    if kind is tuple and all(type(item) in _ATOMS for item in value):
        return value
    if kind in _CONTAINERS and not value:
        memo[id(value)] = kind()
        return memo[id(value)]
    return copy.deepcopy(value, memo)


@cache
def _is_plain(cls: Any) -> bool:
    """Whether ``deepcopy`` would make an empty object and hand it the attributes."""
    usual = ("__reduce_ex__", "__reduce__", "__getstate__")
    if any(getattr(cls, name, None) is not getattr(nn.Module, name, None) for name in usual):
        return False
    if cls in copyreg.dispatch_table:
        return False
    special = (_DEEPCOPY, "__getnewargs__", "__getnewargs_ex__", "__slots__")
    return not any(name in base.__dict__ for base in cls.__mro__[:-1] for name in special)


def _copy_plain_buffers(model: nn.Module, memo: dict[int, Any]) -> None:
    """Buffers that share their memory with no other buffer need none of the care of ``Tensor.__deepcopy__``."""
    plain = [
        b
        for b in model.buffers()
        if type(b) is torch.Tensor
        and id(b) not in memo
        and b.layout is torch.strided
        and not b.requires_grad
        and not b.__dict__
    ]
    places = Counter(b.untyped_storage().data_ptr() for b in plain)
    memo.update((id(b), b.clone()) for b in plain if places[b.untyped_storage().data_ptr()] == 1)


def _leave_companions(model: nn.Module, memo: dict[int, Any]) -> list[nn.Module]:
    """Have the copy find None in place of channelwise's own objects; returns the modules that have some."""
    parted = []
    for module in model.modules():
        own = [module.__dict__[name] for name in ATTACHED if isinstance(module.__dict__.get(name), Companion)]
        if own:
            parted.append(module)
            hooks = [h for store in _hook_stores(module) for h in store.values() if isinstance(h, Companion)]
            memo.update((id(companion), None) for companion in [*own, *hooks])
    return parted


def _drop_companions(clone: nn.Module) -> None:
    for name in ATTACHED:
        if clone.__dict__.get(name, clone) is None:
            del clone.__dict__[name]
    for store in _hook_stores(clone):
        for key in [key for key, hook in store.items() if hook is None]:
            del store[key]
            clone._forward_hooks_with_kwargs.pop(key, None)


def _hook_stores(module: nn.Module) -> tuple[dict[int, Any], ...]:
    return (
        module._forward_pre_hooks, module._forward_hooks, module._load_state_dict_post_hooks,
        module._state_dict_pre_hooks,
    )  # fmt: skip
