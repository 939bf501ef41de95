"""What a choice means for each module: the active part of its tensors, and its attributes; worked out once a width."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter
from typing import Any

import numpy as np
from torch import nn

from channelwise.methods.ofa.layers import dynamic_class
from channelwise.methods.ofa.parts import Kept, LateParts, Layout, layouts
from channelwise.methods.ofa.space import SearchSpace
from channelwise.select.widths import part_count
from channelwise.structure import Size, Structure, TensorInfo
from channelwise.surgery.attributes import Kept as Sizes
from channelwise.surgery.attributes import Shape, fixer_of, owned_tensors
from channelwise.surgery.fixers import kernel_attributes
from channelwise.tracing.code.numbers import attribute_of, with_numbers

# Parts of a module with more choices than this are worked out when they are used: behind long concatenations.
LATE = 4
# So many combinations of a module's choices are remembered. Of many choices hardly one comes again, except the first
# ones: the largest and the smallest subnet.
REMEMBERED, REMEMBERED_LATE = 256, 4
# Names of the shapes of a module's input and output, and how those of its numbers begin; no tensor is named like that.
INPUT, OUTPUT, NUMBER = "->input", "->output", "->number "


class Lengths:
    """The lengths of the axes of all modules' tensors at once: ``constant + terms @ counts``."""

    def __init__(self, sizes: Sequence[Size], position: Mapping[str, int]) -> None:
        self._constant = np.array([size.constant for size in sizes])
        self._terms = np.zeros((len(sizes), len(position)))
        for row, size in enumerate(sizes):
            for group, factor in size.terms:
                self._terms[row, position[group]] += factor

    def __call__(self, counts: np.ndarray) -> list[int]:
        """For counts (groups,)."""
        lengths: list[int] = np.rint(self._constant + self._terms @ counts).astype(int).tolist()
        return lengths


@dataclass
class ModulePlan:
    """One module: ``choices`` are positions of what it depends on, ``original`` its attributes at full width.

    ``tensors`` are its own, by local name. The lengths from ``first`` to ``last`` tell its attributes: ``shapes`` says
    how many are of which tensor, by the names that `channelwise.fixer` functions know, or of its input and output.
    """

    name: str
    choices: tuple[int, ...]
    original: dict[str, Any]
    cls: type[nn.Module]
    tensors: dict[str, tuple[TensorInfo, dict[int, Layout]]]
    shapes: tuple[tuple[str, int], ...]
    first: int
    last: int
    kernel: int = -1
    attributes: dict[tuple[int, ...], dict[str, Any]] = field(default_factory=dict, repr=False)
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
        """What the module depends on, out of the values of all choices."""
        return itemgetter(*self.choices)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "known": {}, "attributes": {}}


class Plans:
    """The plans of all modules that depend on a choice."""

    def __init__(self, structure: Structure, space: SearchSpace, model: nn.Module) -> None:
        self._parts = np.array([part_count(group) for group in structure.groups], int)
        self.modules, sizes = _plans(structure, space, model)
        self._lengths = Lengths(sizes, {group.name: i for i, group in enumerate(structure.groups)})
        self._full = self._lengths(np.array([group.size for group in structure.groups], int))

    def activate(self, modules: Sequence[nn.Module], values: Sequence[int]) -> None:
        """Make these values (choices,) active in the modules, which follow the plans, in place."""
        kept, lengths = None, self._full
        # Children first: the attributes of a parametrized layer follow from the weight that its children compute.
        for plan, module in zip(reversed(self.modules), reversed(modules), strict=True):
            key = plan.key(values)
            state = plan.known.get(key)
            if state is None:
                if kept is None:
                    kept = Kept(values[: len(self._parts)], self._parts)
                    lengths = self._lengths(kept.counts)
                state = self._state(plan, kept, lengths, values, module)
                if len(plan.known) < (REMEMBERED_LATE if plan.late else REMEMBERED):
                    plan.known[key] = state
            module.__dict__.update(state)

    def _state(
        self, plan: ModulePlan, kept: Kept, lengths: list[int], values: Sequence[int], module: nn.Module
    ) -> dict[str, Any]:
        """The entries of the module's ``__dict__`` when these values (choices,) are active."""
        now = tuple(lengths[plan.first : plan.last])
        if now not in plan.attributes:
            plan.attributes[now] = _attributes(plan, tuple(self._full[plan.first : plan.last]), now, module)
        state = {**plan.original, **plan.attributes[now]}
        if plan.kernel >= 0:
            state.update(kernel_attributes(plan.original, module.dilation, values[plan.kernel]))  # type: ignore[arg-type]
        if plan.tensors:
            parts = LateParts(plan.tensors, kept)
            state["_active"] = parts if plan.late else dict(parts)
        return state


def _attributes(plan: ModulePlan, full: Shape, now: Shape, module: nn.Module) -> dict[str, Any]:
    """Numbers that follow channels, and what the class's fixer says, asked of a stand-in that is at full width."""
    before, after = _shapes(plan, full), _shapes(plan, now)
    own = {name.removeprefix(NUMBER): after.pop(name)[0] for name in list(after) if name.startswith(NUMBER)}
    numbers = with_numbers(plan.original, own)
    fixer = fixer_of(plan.cls)
    if fixer is None:
        return numbers
    for name in own:
        del before[NUMBER + name]
    stand_in = object.__new__(plan.cls)
    stand_in.__dict__ = {**module.__dict__, **plan.original, **numbers}
    calls = [(before.pop(call), after.pop(call)) if call in before else None for call in (INPUT, OUTPUT)]
    fixer.fix(stand_in, Sizes(before, after, *calls))
    return numbers | {name: stand_in.__dict__[name] for name in fixer.attributes if name in stand_in.__dict__}


def _shapes(plan: ModulePlan, lengths: Shape) -> dict[str, Shape]:
    shapes, at = {}, 0
    for name, rank in plan.shapes:
        shapes[name] = lengths[at : at + rank]
        at += rank
    return shapes


def _plans(structure: Structure, space: SearchSpace, model: nn.Module) -> tuple[list[ModulePlan], list[Size]]:
    placed = layouts(structure)
    position = space.position
    free = {space.names[i] for i in space.free}
    kernels = {space.choices[i].of: int(i) for i in space.free if space.choices[i].kind == "kernel"}
    holders: dict[str, dict[str, str]] = {}
    owners: dict[str, dict[str, str]] = {}
    for path, module in model.named_modules():
        holders[path] = {
            local: _known_as(structure, f"{path}.{local}" if path else local)
            for store in (module._parameters, module._buffers)
            for local, tensor in store.items()
            if tensor is not None
        }
        owners[path] = {}
    for path, local, _ in owned_tensors(model):
        owners[path][local] = _known_as(structure, f"{path}.{local}" if path else local)
    plans: list[ModulePlan] = []
    lengths: list[Size] = []
    for path, module in model.named_modules():
        tensors = {local: name for local, name in holders[path].items() if name in placed}
        attributes = {local: name for local, name in owners[path].items() if name in structure.tensors}
        fixer = fixer_of(type(module))
        shapes = {local: structure.tensor_sizes[name] for local, name in attributes.items()}
        calls = structure.module_sizes.get(path)
        if fixer is not None and calls is not None:
            shapes |= {name: call for name, call in ((INPUT, calls.input), (OUTPUT, calls.output)) if call is not None}
        numbers = {n.attribute: n.size for n in structure.numbers if n.module == path}
        shapes |= {NUMBER + name: (size,) for name, size in numbers.items()}
        sizes = [size for name in tensors.values() for size in structure.tensor_sizes[name]]
        sizes += [size for shape in shapes.values() for size in shape]
        needed = {group for size in sizes for group, _ in size.terms} & free
        if not needed and path not in kernels:
            continue
        kernel = kernels.get(path, -1)
        names = ["_active"] if tensors else []
        names += [*map(attribute_of, numbers), *(() if fixer is None else fixer.attributes)]
        names += ["kernel_size", "padding", "_reversed_padding_repeated_twice"] if kernel >= 0 else []
        original = {name: module.__dict__[name] for name in names if name in module.__dict__}
        if tensors:
            original["_active"] = {}
        plans.append(
            ModulePlan(
                name=path,
                choices=tuple(sorted(position[g] for g in needed)) + ((kernel,) if kernel >= 0 else ()),
                original=original,
                cls=type(module),
                tensors={local: (structure.tensors[name], placed[name]) for local, name in tensors.items()},
                shapes=tuple((name, len(shape)) for name, shape in shapes.items()),
                first=len(lengths),
                last=len(lengths) + sum(len(shape) for shape in shapes.values()),
                kernel=kernel,
            )
        )
        lengths += [size for shape in shapes.values() for size in shape]
    return plans, lengths


def _known_as(structure: Structure, name: str) -> str:
    return structure.aliases.get(name, name)
