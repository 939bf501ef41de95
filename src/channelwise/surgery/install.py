"""Puts tensors of a slim model into a fresh original one, all or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import torch
from torch import nn

from channelwise.errors import InvalidArgumentError
from channelwise.structure import Structure
from channelwise.surgery.attributes import fix_attributes, fixer_of, resized_modules, set_followed
from channelwise.surgery.clone import stand_in
from channelwise.surgery.slicing import laid_out
from channelwise.tracing.code.numbers import number_of


def install(
    model: nn.Module,
    present: Mapping[str, torch.Tensor],
    stored: Mapping[str, torch.Tensor],
    *,
    attributes: Mapping[str, Mapping[str, Any]] | None = None,
    structure: Structure | None = None,
    counts: Mapping[str, int] | None = None,
) -> None:
    """Put ``stored`` in the place of ``present`` and correct the modules; puts everything back if that fails."""
    new: dict[int, torch.Tensor] = {}
    with torch.inference_mode(False), torch.no_grad():
        for name, tensor in present.items():
            if id(tensor) not in new:
                data = stored[name].detach()
                data = data.clone() if tensor.is_meta else data.to(tensor.device, copy=True)
                new[id(tensor)] = stand_in(tensor, laid_out(data, tensor))
    resized = resized_modules(
        model, {id(t): tuple(new[id(t)].shape) for t in present.values() if new[id(t)].shape != t.shape}
    )
    modules = dict(model.named_modules())
    undo = [(m, dict(m.__dict__), dict(m._parameters), dict(m._buffers)) for m in modules.values()]
    try:
        for module in modules.values():
            for store in (module._parameters, module._buffers):
                for key, old in store.items():
                    if old is not None and id(old) in new:
                        store[key] = new[id(old)]
        fix_attributes(model, resized, structure, counts)
        for name, values in (attributes or {}).items():
            _set_attributes(modules[name], values)
    except BaseException:
        for module, entries, parameters, buffers in undo:
            module.__dict__.clear()
            module.__dict__.update(entries)
            module._parameters.update(parameters)
            module._buffers.update(buffers)
        raise


def check_sizes(stored: Mapping[str, torch.Tensor], present: Mapping[str, torch.Tensor]) -> None:
    """Raises InvalidArgumentError, naming the tensor and what differs, unless ``stored`` is slim ``present``."""
    for name, tensor in present.items():
        found, original = tuple(stored[name].shape), tuple(tensor.shape)
        if len(found) != len(original) or any(not min(o, 1) <= f <= o for f, o in zip(found, original, strict=True)):
            raise InvalidArgumentError(
                f"{name} has shape {found}, which is not a slim version of its shape {original} in the given model; "
                "give a fresh instance of the original model"
            )
        if _kind(stored[name]) != _kind(tensor):
            raise InvalidArgumentError(
                f"{name} is of {stored[name].dtype}, which cannot take the place of {tensor.dtype} in the given model"
            )
        if len({stored[n].shape for n, t in present.items() if t is tensor}) > 1:
            raise InvalidArgumentError(f"{name} is shared in the given model, but its names have different shapes")


def check_layers(model: nn.Module, stored: Mapping[str, torch.Tensor]) -> None:
    """Raises InvalidArgumentError, naming both tensors, if a layer of torch has another width in one than in another.

    What different layers have to do with each other only a trace knows.
    """
    for path, module in model.named_modules():
        if not type(module).__module__.startswith("torch.nn.") or getattr(module, "transposed", False):
            continue
        first: dict[int, str] = {}
        own = {**module._parameters, **module._buffers}
        for local in ("weight", "bias", "running_mean", "running_var"):
            tensor, name = own.get(local), f"{path}.{local}".lstrip(".")
            if tensor is None or name not in stored or not tensor.ndim:
                continue
            known = first.setdefault(len(tensor), name)
            if len(stored[known]) != len(stored[name]):
                raise InvalidArgumentError(
                    f"{known} has shape {tuple(stored[known].shape)} and {name} has shape {tuple(stored[name].shape)}, "
                    "which contradict each other: the state dict is of no slim model. Take all of it from one model"
                )


def _kind(tensor: torch.Tensor) -> str:
    if tensor.is_floating_point():
        return "floating"
    return "complex" if tensor.is_complex() else "truth" if tensor.dtype is torch.bool else "whole"


def check_attributes(model: nn.Module, attributes: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises InvalidArgumentError, naming the attribute, unless each could be that of a slim version of ``model``."""
    for name, values in attributes.items():
        module = model.get_submodule(name)
        for attribute, value in values.items():
            old = _present(module, attribute)
            if not _could_be(value, old):
                shown = f"{name}.{attribute}" if name else attribute
                raise InvalidArgumentError(f"{shown} is {value!r} there, which cannot take the place of {old!r}")


def _present(module: nn.Module, attribute: str) -> Any:
    """The value of what `_set_attributes` would set, None where it would set nothing."""
    known = fixer_of(type(module))
    if known is not None and attribute in known.attributes:
        return getattr(module, attribute, None)
    return number_of(module, attribute)


def _could_be(new: Any, old: Any) -> bool:
    """Whether ``new``, as JSON has it, is of the kind of ``old``; whole numbers do not become negative."""
    if isinstance(old, (list, tuple)):
        return isinstance(new, list) and len(new) == len(old) and all(map(_could_be, new, old))
    if isinstance(old, Integral) and not isinstance(old, bool):
        return type(new) is int and new >= min(int(old), 0)
    if isinstance(old, Real) and not isinstance(old, bool):
        return type(new) in (int, float)
    return old is None or isinstance(new, type(old))


def _set_attributes(module: nn.Module, values: Mapping[str, Any]) -> None:
    known = fixer_of(type(module))
    for attribute, value in values.items():
        if known is None or attribute not in known.attributes:
            if type(value) is int and number_of(module, attribute) is not None:
                set_followed(module, {attribute: value})
            continue
        old = getattr(module, attribute, None)
        value = tuple(value) if isinstance(value, list) and isinstance(old, tuple) else value
        if value != old:
            setattr(module, attribute, value)
