"""Corrects attributes such as ``in_channels`` after a module got smaller tensors: a registry of small fixers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from channelwise.errors import InvalidArgumentError
from channelwise.inputs.check import describe
from channelwise.structure import Size, Structure
from channelwise.surgery.slicing import NUMBERS
from channelwise.tracing.code.numbers import number_of, with_numbers
from channelwise.tracing.code.other_ways import readers

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Kept:
    """What a fixer is told about one module: shapes before and after, as far as they are known.

    ``before`` and ``after`` map the module's own tensors, by local name (``weight``,
    ``parametrizations.weight.original``), to shapes. ``input`` and ``output`` are pairs (before, after) of the shapes
    of the first argument and the first result of its calls, None where the trace saw no call.
    """

    before: Mapping[str, Shape] = field(default_factory=dict)
    after: Mapping[str, Shape] = field(default_factory=dict)
    input: tuple[Shape, Shape] | None = None
    output: tuple[Shape, Shape] | None = None

    def shape(self, module: nn.Module, name: str) -> Shape | None:
        """Shape after the change of the tensor that ``module`` uses as ``name``, however it is stored."""
        inside = f"parametrizations.{name}."
        original = f"{inside}original"
        # Several originals, or a parametrization whose own tensors decide (orthogonal has a base): compute it.
        others = [n for n in self.after if n.startswith(inside) and n != original]
        if any(n == f"{original}0" or self.after[n] != self.before.get(n) for n in others):
            return _shape_of_computed(module, name)
        for local in (name, original, f"{name}_orig", f"{name}_v"):
            if local in self.after:
                return self.after[local]
        return None

    def length(self, which: str, axis: int, before: int) -> int | None:
        """Length after the change of an axis of the "input" or "output", if it was ``before`` before; else None."""
        pair = self.input if which == "input" else self.output
        if pair is None or not -len(pair[0]) <= axis < len(pair[0]) or pair[0][axis] != before:
            return None
        return pair[1][axis]


Fix = Callable[[Any, Kept], None]
F = TypeVar("F", bound=Fix)


@dataclass(frozen=True)
class Fixer:
    """A registered function and the attributes that it sets."""

    fix: Fix
    attributes: tuple[str, ...]


_registry: dict[type[nn.Module], Fixer] = {}


def fixer(*classes: type[nn.Module], attributes: tuple[str, ...] = ()) -> Callable[[F], F]:
    """Register ``fix(module, sizes)`` for modules of ``classes`` and their subclasses.

    It runs on the modules of a slim model whose tensors, input or output changed size, after the tensors were
    replaced; `Kept` tells the shapes. ``attributes`` are what it sets: `channelwise.save` stores them in the file.

    Example:
        >>> @fixer(MyScale, attributes=("width",))
        ... def fix_my_scale(module, sizes):
        ...     module.width = sizes.after["scale"][0]
    """

    for cls in classes:
        if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
            raise InvalidArgumentError(f"fixer takes classes of modules, such as MyScale, not {describe(cls)}.")

    if not isinstance(attributes, (tuple, list)) or not all(isinstance(name, str) for name in attributes):
        raise InvalidArgumentError(
            f'attributes are the names that the fixer sets, such as ("width",), not {describe(attributes)}.'
        )

    def register(fix: F) -> F:
        if not callable(fix):
            raise InvalidArgumentError(f"A fixer is a function (module, sizes), not {describe(fix)}.")
        _registry.update((cls, Fixer(fix, tuple(attributes))) for cls in classes)
        return fix

    return register


def fixer_of(cls: type[nn.Module]) -> Fixer | None:
    """The fixer of the nearest registered class among ``cls`` and its bases."""
    return next((_registry[base] for base in cls.__mro__ if base in _registry), None)


def resized_modules(model: nn.Module, shapes: Mapping[int, Shape]) -> dict[str, Kept]:
    """Modules of ``model`` that own a tensor of ``shapes`` (id of a tensor -> new shape), by name."""
    before: dict[str, dict[str, Shape]] = {}
    after: dict[str, dict[str, Shape]] = {}
    resized = set()
    for name, local, tensor in owned_tensors(model):
        before.setdefault(name, {})[local] = tuple(tensor.shape)
        after.setdefault(name, {})[local] = shapes.get(id(tensor), tuple(tensor.shape))
        if id(tensor) in shapes:
            resized.add(name)
    return {name: Kept(before[name], after[name]) for name in before if name in resized}


def owned_tensors(model: nn.Module) -> Iterator[tuple[str, str, torch.Tensor]]:
    """Owner, local name and tensor of everything; a parametrized tensor belongs to the module that uses it."""
    for path, module in model.named_modules():
        owner, inside, tail = f".{path}".partition(".parametrizations")
        owner = owner.removeprefix(".")
        local = f"parametrizations{tail}." if inside else ""
        for store in (module._parameters, module._buffers):
            for key, tensor in store.items():
                if tensor is not None:
                    yield owner, local + key, tensor


def fix_attributes(
    model: nn.Module,
    resized: Mapping[str, Kept],
    structure: Structure | None = None,
    kept_counts: Mapping[str, int] | None = None,
) -> None:
    """Run the fixers on the modules in ``resized`` and on those whose input or output changed size.

    ``model`` has its new tensors already. ``structure`` and the kept counts of its groups tell the sizes that no
    tensor shows, of norms without affine parameters for example.
    """
    calls: dict[str, Kept] = {}
    modules = dict(model.named_modules())
    if structure is not None and kept_counts is not None:
        calls = resized_calls(structure, kept_counts)
        for number in structure.numbers:
            set_followed(modules[number.module], {number.attribute: number.size(kept_counts)})
    for name in {**resized, **calls}:
        module = modules.get(name)
        if module is None:
            continue
        _fix(module, resized.get(name), calls.get(name))
        if name in resized:
            _refresh_computed(module)


def _fix(module: nn.Module, own: Kept | None, seen: Kept | None) -> None:
    """Run the fixer of a module, if it has one, on what is known of its own tensors and of its input and output."""
    found = fixer_of(type(module))
    if found is None:
        return
    if own is None:
        shapes = {name: tuple(tensor.shape) for name, tensor in _direct(module)}
        own = Kept(shapes, shapes)
    found.fix(module, Kept(own.before, own.after, seen.input if seen else None, seen.output if seen else None))


def corrected_attributes(
    module: nn.Module, own: Kept | None, seen: Kept | None, numbers: Mapping[str, int]
) -> dict[str, Any]:
    """The attributes that ``module`` has in a slim model, as far as they are others; it is not changed."""
    twin = object.__new__(type(module))
    twin.__dict__ = {**module.__dict__, **with_numbers(module.__dict__, numbers)}
    _fix(twin, own, seen)
    return {name: value for name, value in twin.__dict__.items() if module.__dict__.get(name, twin) is not value}


_FOLLOWED = "_channelwise_numbers"


def set_followed(module: nn.Module, numbers: Mapping[str, int]) -> None:
    """Set numbers that follow the channels, and note on the module which: files and state dicts have to hold them."""
    module.__dict__.update(with_numbers(module.__dict__, numbers))
    known = module.__dict__.get(_FOLLOWED, ())
    # With the hook a pickle of the model needs channelwise. What `forward` does not read is not worth that.
    handed_over = [name for name in known if not readers(type(module), name)]
    if not handed_over and not all(readers(type(module), name) for name in numbers):
        module.register_state_dict_post_hook(_hand_over)
    module.__dict__[_FOLLOWED] = tuple(sorted({*known, *numbers}))


def _hand_over(module: nn.Module, state_dict: Any, prefix: str, local_metadata: dict[str, Any]) -> None:
    local_metadata[NUMBERS] = followed_numbers(module)


def followed_numbers(module: nn.Module) -> dict[str, int]:
    """The numbers of a slim model's module that follow the channels."""
    found = {name: number_of(module, name) for name in module.__dict__.get(_FOLLOWED, ())}
    return {name: value for name, value in found.items() if value is not None}


def _direct(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for owner, local, tensor in owned_tensors(module):
        if not owner:
            yield local, tensor


def resized_calls(structure: Structure, kept_counts: Mapping[str, int]) -> dict[str, Kept]:
    """Modules of which the trace saw calls and whose input or output changes size, by name."""
    full = structure.full()
    resized = {name for name, count in full.items() if kept_counts[name] != count}

    def pair(sizes: tuple[Size, ...] | None) -> tuple[Shape, Shape] | None:
        if sizes is None:
            return None
        before, after = tuple(s(full) for s in sizes), tuple(s(kept_counts) for s in sizes)
        return before, after

    found = {}
    for name, sizes in structure.module_sizes.items():
        both = (*(sizes.input or ()), *(sizes.output or ()))
        if any(group in resized for size in both for group, _ in size.terms):
            found[name] = Kept(input=pair(sizes.input), output=pair(sizes.output))
    return found


def _shape_of_computed(module: nn.Module, name: str) -> Shape:
    """Shape of a parametrized tensor by computing it, in eval mode so that no power iteration moves a buffer."""
    modes = [(m, m.training) for m in module.modules()]
    try:
        module.eval()
        with torch.no_grad():
            return tuple(getattr(module, name).shape)
    finally:
        for m, training in modes:
            m.training = training


def _refresh_computed(module: nn.Module) -> None:
    """Recompute tensors that forward pre-hooks leave on a module: the copies still have the old size."""
    with torch.no_grad():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm):
                setattr(module, hook.name, hook.compute_weight(module))
            elif isinstance(hook, SpectralNorm):
                setattr(module, hook.name, hook.compute_weight(module, do_power_iteration=False))
            elif isinstance(hook, BasePruningMethod):
                setattr(module, hook._tensor_name, hook.apply_mask(module))
