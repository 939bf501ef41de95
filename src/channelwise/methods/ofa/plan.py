"""What a choice means for each module: the active part of its tensors, and its attributes; worked out once a width."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from channelwise.graph.structure import Group, Size, Structure, TensorInfo
from channelwise.methods.ofa.active import Part
from channelwise.methods.ofa.choices import SearchSpace
from channelwise.methods.ofa.layers import dynamic_class
from channelwise.surgery.attributes import Kept as Sizes
from channelwise.surgery.attributes import Shape, fixer_of, owned_tensors
from channelwise.surgery.fixers import kernel_attributes
from channelwise.widths import part_count

# So many combinations of a module's choices are remembered: layers behind long concatenations have many.
REMEMBERED = 256
# Parts of a module with more choices than this are worked out when they are used.
LATE = 4
# Names of the shapes of a module's input and output, which no tensor can have.
INPUT, OUTPUT = "->input", "->output"


@dataclass(frozen=True, eq=False)
class Layout:
    """Whose the slots of an axis are. ``owner`` (slots,): position of the group, or of the last, none at all.

    ``rank`` (slots,): a slot is active while this is below the number of channels that a part of its group keeps.
    """

    owner: np.ndarray
    rank: np.ndarray


class Kept:
    """What is kept of every layout when every part of a group keeps so many channels, ``per_part`` (groups + 1,)."""

    def __init__(self, counts: Sequence[int], parts: np.ndarray) -> None:
        self.counts = np.asarray(counts)
        self._per_part = np.append(self.counts // parts, np.iinfo(int).max)
        self._masks: dict[int, np.ndarray] = {}

    def mask(self, layout: Layout) -> np.ndarray:
        """(slots,) of bool; worked out once, for the tensors of a batch norm and its neighbours are laid out alike."""
        found = self._masks.get(id(layout))
        if found is None:
            found = self._masks[id(layout)] = layout.rank < self._per_part[layout.owner]
        return found


class LateParts(Mapping[str, Part]):
    """The active parts by local name, worked out when they are used: behind long concatenations that takes a while."""

    def __init__(self, tensors: Mapping[str, tuple[TensorInfo, dict[int, Layout]]], kept: Kept) -> None:
        self._tensors, self._kept = tensors, kept
        self._known: dict[str, Part | None] = {}

    def __getitem__(self, local: str) -> Part:
        if local not in self._known:
            self._known[local] = _part(*self._tensors[local], self._kept)
        part = self._known[local]
        if part is None:
            raise KeyError(local)
        return part

    def __iter__(self) -> Iterator[str]:
        return (local for local in self._tensors if local in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __deepcopy__(self, memo: Any) -> LateParts:
        return self

    def __reduce__(self) -> Any:
        return dict, (dict(self),)


class Lengths:
    """Several `Size` at once: ``constant + terms @ counts``."""

    def __init__(self, shapes: Mapping[str, tuple[Size, ...]], position: Mapping[str, int], full: np.ndarray) -> None:
        sizes = [size for shape in shapes.values() for size in shape]
        self._names = [(name, len(shape)) for name, shape in shapes.items()]
        self._constant = np.array([size.constant for size in sizes])
        self._groups = np.array(sorted({position[g] for size in sizes for g, _ in size.terms}), int)
        column = {group: i for i, group in enumerate(self._groups.tolist())}
        self._terms = np.zeros((len(sizes), len(self._groups)))
        for row, size in enumerate(sizes):
            for group, factor in size.terms:
                self._terms[row, column[position[group]]] += factor
        self.full = self(full)

    def __call__(self, counts: np.ndarray) -> dict[str, Shape]:
        """The shapes by name, for counts (groups,)."""
        flat = np.rint(self._constant + self._terms @ counts[self._groups]).astype(int).tolist()
        shapes, at = {}, 0
        for name, length in self._names:
            shapes[name] = tuple(flat[at : at + length])
            at += length
        return shapes


@dataclass
class ModulePlan:
    """One module: ``choices`` are positions of what it depends on, ``original`` its attributes at full width.

    ``tensors`` are its own, by local name; ``shapes`` tell its attributes: of tensors by the names that
    `channelwise.fixer` functions know, and of its input and output, if the trace saw a call.
    """

    name: str
    choices: tuple[int, ...]
    original: dict[str, Any]
    cls: type[nn.Module]
    tensors: dict[str, tuple[TensorInfo, dict[int, Layout]]]
    shapes: Lengths
    kernel: int = -1
    known: dict[tuple[int, ...], dict[str, Any]] = field(default_factory=dict, repr=False)

    @property
    def dynamic(self) -> type[nn.Module]:
        """What the module is in a supernet: of another class only if it has tensors to narrow."""
        return dynamic_class(self.cls, self.tensors) if self.tensors else self.cls

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "known": {}}


class Plans:
    """The plans of all modules that depend on a choice."""

    def __init__(self, structure: Structure, space: SearchSpace, model: nn.Module) -> None:
        self._parts = np.array([part_count(group) for group in structure.groups], int)
        self.modules = _plans(structure, space, model)

    def activate(self, modules: Sequence[nn.Module], values: Sequence[int]) -> None:
        """Make these values (choices,) active in the modules, which follow the plans, in place."""
        kept = None
        # Children first: the attributes of a parametrized layer follow from the weight that its children compute.
        for plan, module in zip(reversed(self.modules), reversed(modules), strict=True):
            key = tuple([values[i] for i in plan.choices])
            state = plan.known.get(key)
            if state is None:
                kept = kept or Kept(values[: len(self._parts)], self._parts)
                if len(plan.known) >= REMEMBERED:
                    plan.known.clear()
                state = plan.known[key] = _state(plan, kept, values, module)
            module.__dict__.update(state)


def _state(plan: ModulePlan, kept: Kept, values: Sequence[int], module: nn.Module) -> dict[str, Any]:
    """The entries of the module's ``__dict__`` when these values (choices,) are active."""
    state = {**plan.original, **_attributes(plan, kept, module)}
    if plan.kernel >= 0:
        state.update(kernel_attributes(plan.original, module.dilation, values[plan.kernel]))  # type: ignore[arg-type]
    if plan.tensors:
        parts = LateParts(plan.tensors, kept)
        state["_active"] = parts if len(plan.choices) > LATE else dict(parts)
    return state


def _attributes(plan: ModulePlan, kept: Kept, module: nn.Module) -> dict[str, Any]:
    """What the class's fixer says, asked of a stand-in so that it starts from the full width."""
    fixer = fixer_of(plan.cls)
    if fixer is None:
        return {}
    stand_in = object.__new__(plan.cls)
    stand_in.__dict__ = {**module.__dict__, **plan.original}
    before, after = dict(plan.shapes.full), plan.shapes(kept.counts)
    calls = [(before.pop(call), after.pop(call)) if call in before else None for call in (INPUT, OUTPUT)]
    fixer.fix(stand_in, Sizes(before, after, *calls))
    return {name: stand_in.__dict__[name] for name in fixer.attributes if name in stand_in.__dict__}


def _plans(structure: Structure, space: SearchSpace, model: nn.Module) -> list[ModulePlan]:
    layouts = _layouts(structure)
    position = space.position
    full = np.array([group.size for group in structure.groups], int)
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
    plans = []
    for path, module in model.named_modules():
        tensors = {local: name for local, name in holders[path].items() if name in layouts}
        attributes = {local: name for local, name in owners[path].items() if name in structure.tensors}
        fixer = fixer_of(type(module))
        shapes = {local: structure.tensor_sizes[name] for local, name in attributes.items()}
        calls = structure.module_sizes.get(path)
        if fixer is not None and calls is not None:
            shapes |= {name: call for name, call in ((INPUT, calls.input), (OUTPUT, calls.output)) if call is not None}
        sizes = [size for name in tensors.values() for size in structure.tensor_sizes[name]]
        sizes += [size for shape in shapes.values() for size in shape]
        needed = {group for size in sizes for group, _ in size.terms} & free
        if not needed and path not in kernels:
            continue
        kernel = kernels.get(path, -1)
        names = ["_active"] if tensors else []
        names += [] if fixer is None else fixer.attributes
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
                tensors={local: (structure.tensors[name], layouts[name]) for local, name in tensors.items()},
                shapes=Lengths(shapes, position, full),
                kernel=kernel,
            )
        )
    return plans


def _known_as(structure: Structure, name: str) -> str:
    return structure.aliases.get(name, name)


def _layouts(structure: Structure) -> dict[str, dict[int, Layout]]:
    """By tensor and axis; axes that are laid out alike share one object."""
    drafts: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = {}
    nobody = len(structure.groups)
    for position, group in enumerate(structure.groups):
        rank = _ranks(group)
        for slots in group.slots:
            key = (slots.tensor, slots.axis)
            if key not in drafts:
                n = structure.tensors[slots.tensor].slots(slots.axis)
                drafts[key] = np.full(n, nobody), np.zeros(n, int)
            owner, ranks = drafts[key]
            owner[slots.index] = position
            ranks[slots.index] = rank[:, None]
    shared: dict[tuple[bytes, bytes], Layout] = {}
    found: dict[str, dict[int, Layout]] = {}
    for (tensor, axis), (owner, ranks) in drafts.items():
        layout = shared.setdefault((owner.tobytes(), ranks.tobytes()), Layout(owner, ranks))
        found.setdefault(tensor, {})[axis] = layout
    return found


def _ranks(group: Group) -> np.ndarray:
    """Place of every channel (size,) in its part."""
    if group.parts is None:
        return np.arange(group.size)
    rank = np.empty(group.size, int)
    for part in np.unique(group.parts):
        members = np.flatnonzero(group.parts == part)
        rank[members] = np.arange(len(members))
    return rank


def _part(info: TensorInfo, axes: Mapping[int, Layout], kept: Kept) -> Part | None:
    """The active part of a tensor, None if that is all of it."""
    masks = {axis: kept.mask(layout) for axis, layout in axes.items()}
    columns = None
    if info.blocks > 1 and 1 in masks:
        columns = _columns(info, masks.pop(1), masks.get(0))
    prefix, index = [], {}
    for axis, mask in masks.items():
        count = int(mask.sum())
        if count == len(mask):
            continue
        if mask[:count].all():
            prefix.append((axis, count))
        else:
            index[axis] = torch.from_numpy(np.flatnonzero(mask))
    if columns is not None and (columns == np.arange(columns.shape[1])).all():
        prefix += [(1, columns.shape[1])] if columns.shape[1] < info.shape[1] else []
        columns = None
    if not prefix and not index and columns is None:
        return None
    return Part(prefix, index, None if columns is None else torch.from_numpy(columns))


def _columns(info: TensorInfo, mask: np.ndarray, rows: np.ndarray | None) -> np.ndarray:
    """Kept columns (active rows, columns) of a grouped convolution's weight."""
    live = np.ones(info.shape[0], bool) if rows is None else rows
    block = np.flatnonzero(live) // (info.shape[0] // info.blocks)
    blocks = np.unique(block)
    kept = mask.reshape(info.blocks, info.shape[1])[blocks]
    columns = np.nonzero(kept)[1].reshape(len(blocks), -1)
    return columns[np.searchsorted(blocks, block)]
