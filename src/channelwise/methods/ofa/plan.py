"""What a choice means for each module: the active part of its tensors, and its attributes, found once a width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter
from typing import Any

import numpy as np
from torch import nn

from channelwise.methods.ofa.active import LateParts
from channelwise.methods.ofa.layers import dynamic_class
from channelwise.methods.ofa.sorting import Prefixes
from channelwise.methods.ofa.space import SearchSpace
from channelwise.structure import NormedWeight, Size, Structure
from channelwise.surgery.attributes import Kept, Shape, corrected_attributes, fixer_of, owned_tensors
from channelwise.surgery.counts import Lengths
from channelwise.surgery.cuts import Owners, Stays, owners
from channelwise.surgery.fixers import kernel_attributes
from channelwise.tracing.code.numbers import attribute_of

# Parts of a module with more choices than this are worked out when they are used: behind long concatenations.
LATE = 4
# How many combinations of a module's choices are remembered. With many choices hardly any comes again, except those of
# the largest and the smallest subnet, which come first.
REMEMBERED, REMEMBERED_LATE = 256, 4

Named = dict[tuple[str, str], tuple[Size, ...]]
"""What the attributes of a module follow from: shapes of ("tensor", its local name) and of the ("call", "input") or
"output"; the one size of a ("number", attribute)."""


@dataclass
class ModulePlan:
    """One module: ``choices`` are positions of what it depends on, ``original`` its attributes at full width.

    ``tensors`` are its own, by local name. Its attributes follow from lengths: ``lengths`` says where these are among
    those of all modules, ``ranks`` how many of them belong to each tensor, call and number. ``normed`` has local names.
    """

    name: str
    cls: type[nn.Module]
    choices: tuple[int, ...]
    original: dict[str, Any]
    tensors: dict[str, Owners]
    lengths: slice
    ranks: dict[tuple[str, str], int]
    kernel: int = -1
    normed: NormedWeight | None = None
    attributes: dict[Shape, dict[str, Any]] = field(default_factory=dict, repr=False)
    known: dict[Any, dict[str, Any]] = field(default_factory=dict, repr=False)

    @property
    def dynamic(self) -> type[nn.Module]:
        """What the module is in a supernet: of another class only if it has tensors to narrow."""
        return dynamic_class(self.cls, self.tensors) if self.tensors else self.cls

    @cached_property
    def late(self) -> bool:
        """Whether its active parts are worked out when they are used."""
        return len(self.choices) > LATE

    @cached_property
    def key(self) -> Callable[[Sequence[int]], Any]:
        """Picks what the module depends on from the values of all choices."""
        return itemgetter(*self.choices)

    def shapes(self, lengths: Shape) -> dict[str, dict[str, Shape]]:
        """The lengths of this module as shapes by name, for each kind of `Named`."""
        found: dict[str, dict[str, Shape]] = {"tensor": {}, "call": {}, "number": {}}
        at = 0
        for (kind, name), rank in self.ranks.items():
            found[kind][name] = lengths[at : at + rank]
            at += rank
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "known": {}, "attributes": {}}


class Plans:
    """The plans of all modules that depend on a choice."""

    def __init__(self, structure: Structure, space: SearchSpace, model: nn.Module) -> None:
        self.prefixes = Prefixes(structure)
        self.modules, sizes = _plans(structure, space, model)
        self._lengths = Lengths(sizes, [group.name for group in structure.groups])
        self._full = self._lengths.at([group.size for group in structure.groups])

    def activate(self, modules: Sequence[nn.Module], values: Sequence[int]) -> None:
        """Make these values (choices,) active in the modules, one for each plan, in place."""
        stays, lengths = None, self._full
        # Children first: the attributes of a parametrized layer follow from the weight that its children compute.
        for plan, module in zip(reversed(self.modules), reversed(modules), strict=True):
            key = plan.key(values)
            state = plan.known.get(key)
            if state is None:
                if stays is None:
                    counts = np.array(values[: self.prefixes.groups], int)
                    stays, lengths = Stays(self.prefixes.channels(counts)), self._lengths.at(counts)
                state = self._state(plan, stays, lengths, values, module)
                if len(plan.known) < (REMEMBERED_LATE if plan.late else REMEMBERED):
                    plan.known[key] = state
            module.__dict__.update(state)

    def _state(
        self, plan: ModulePlan, stays: Stays, lengths: Shape, values: Sequence[int], module: nn.Module
    ) -> dict[str, Any]:
        """The entries of the module's ``__dict__`` when these values (choices,) are active."""
        now = lengths[plan.lengths]
        if now not in plan.attributes:
            plan.attributes[now] = _attributes(plan, self._full[plan.lengths], now, module)
        state = {**plan.original, **plan.attributes[now]}
        if plan.kernel >= 0:
            state.update(kernel_attributes(plan.original, module.dilation, values[plan.kernel]))  # type: ignore[arg-type]
        if plan.tensors:
            parts = LateParts(plan.tensors, stays)
            state["_active"] = parts if plan.late else dict(parts)
        return state


def _attributes(plan: ModulePlan, full: Shape, now: Shape, module: nn.Module) -> dict[str, Any]:
    """The attributes that differ from those at full width, found on a stand-in for the plain layer."""
    before, after = plan.shapes(full), plan.shapes(now)
    stand_in = object.__new__(plan.cls)
    stand_in.__dict__ = {**module.__dict__, **plan.original}
    calls = {which: (before["call"][which], shape) for which, shape in after["call"].items()}
    seen = Kept(input=calls.get("input"), output=calls.get("output"))
    numbers = {attribute: length for attribute, (length,) in after["number"].items()}
    return corrected_attributes(stand_in, Kept(before["tensor"], after["tensor"]), seen, numbers)


def _plans(structure: Structure, space: SearchSpace, model: nn.Module) -> tuple[list[ModulePlan], list[Size]]:
    """The plans of the modules that depend on a choice, and the sizes that their attributes follow from, in a row."""
    free = {space.names[i] for i in space.free}
    kernels = {space.choices[i].of: int(i) for i in space.free if space.choices[i].kind == "kernel"}
    tensors, followed = _tensors_and_sizes(structure, model)
    normed = dict(_gathered(one, tensors) for one in structure.normed)
    plans: list[ModulePlan] = []
    lengths: list[Size] = []
    for path, module in model.named_modules():
        own, kernel = tensors[path], kernels.get(path, -1)
        sizes = [size for shape in followed[path].values() for size in shape]
        all_sizes = sizes + [size for tensor in own.values() for size in structure.tensor_sizes[tensor.info.name]]
        choices = sorted({space.position[group] for size in all_sizes for group, _ in size.terms if group in free})
        choices += [kernel] if kernel >= 0 else []
        if not choices:
            continue
        numbers = [name for kind, name in followed[path] if kind == "number"]
        plans.append(
            ModulePlan(
                name=path,
                cls=type(module),
                choices=tuple(choices),
                original=_original(module, numbers, kernel >= 0) | ({"_active": {}} if own else {}),
                tensors=own,
                lengths=slice(len(lengths), len(lengths) + len(sizes)),
                ranks={key: len(shape) for key, shape in followed[path].items()},
                kernel=kernel,
                normed=normed.get(path),
            )
        )
        lengths += sizes
    return plans, lengths


def _tensors_and_sizes(structure: Structure, model: nn.Module) -> tuple[dict[str, dict[str, Owners]], dict[str, Named]]:
    """By name of the module: its own tensors that have channels, and what its attributes follow from."""
    tensors: dict[str, dict[str, Owners]] = {path: {} for path, _ in model.named_modules()}
    followed: dict[str, Named] = {path: {} for path in tensors}
    with_channels = owners(structure)
    for path, local, _ in owned_tensors(model):
        full_name = f"{path}.{local}" if path else local
        holder, _, own = full_name.rpartition(".")
        name = structure.aliases.get(full_name, full_name)
        if name in with_channels:
            tensors[holder][own] = with_channels[name]
        if name in structure.tensor_sizes:
            followed[path]["tensor", local] = structure.tensor_sizes[name]
    for path, calls in structure.module_sizes.items():
        if path in followed and fixer_of(type(model.get_submodule(path))) is not None:
            both = {"input": calls.input, "output": calls.output}
            followed[path].update({("call", which): shape for which, shape in both.items() if shape is not None})
    for number in structure.numbers:
        followed[number.module]["number", number.attribute] = (number.size,)
    return tensors, followed


def _gathered(one: NormedWeight, tensors: dict[str, dict[str, Owners]]) -> tuple[str, NormedWeight]:
    """The module that holds a weight that is divided by its norm, and its tensors by local names.

    It narrows all of them, those of a part of it, too: the norm before and after is known only to who has the weight.
    """
    holder = one.weight.rpartition(".")[0]
    local = {name: name.removeprefix(f"{holder}.") for name in one.names}
    for name, of_holder in local.items():
        path, _, own = name.rpartition(".")
        if path != holder and own in tensors[path]:
            tensors[holder][of_holder] = tensors[path].pop(own)
    return holder, NormedWeight(local[one.weight], local[one.scale], one.axis, local.get(one.right or ""))


def _original(module: nn.Module, numbers: Sequence[str], kernel: bool) -> dict[str, Any]:
    """The attributes that may change, as they are."""
    fixer = fixer_of(type(module))
    names = [*map(attribute_of, numbers), *(() if fixer is None else fixer.attributes)]
    names += ["kernel_size", "padding", "_reversed_padding_repeated_twice"] if kernel else []
    return {name: module.__dict__[name] for name in names if name in module.__dict__}
