"""What a trace writes down: labels of parameters and buffers, executed MACs, shapes that modules see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from channelwise.structure import Role, TensorInfo
from channelwise.tensors import named_tensors
from channelwise.tracing.context import MacRecord, Maps
from channelwise.tracing.labels import LabelMap, LabelSpace, along


@dataclass(frozen=True, eq=False)
class TensorLabels:
    """The labels of one parameter or buffer: (slots,) of every axis, none for axes of length 1 and kernel positions."""

    info: TensorInfo
    axes: tuple[np.ndarray | None, ...]

    def maps(self) -> list[LabelMap]:
        """Label maps of the tensor itself."""
        found = []
        for axis, labels in enumerate(self.axes):
            if labels is None:
                continue
            ndim = len(self.info.shape)
            if axis == 1 and self.info.blocks > 1:
                grid = np.repeat(labels.reshape(self.info.blocks, -1), self.info.shape[0] // self.info.blocks, axis=0)
                found.append(LabelMap(grid.reshape(grid.shape + (1,) * (ndim - 2)), 1, True))
            else:
                found.append(along(labels, axis, ndim, True))
        return found


@dataclass(frozen=True, eq=False)
class CallShapes:
    """Labels (or None) and lengths of every axis of a module's first input and first output."""

    input: tuple[tuple[np.ndarray | None, int], ...] | None
    output: tuple[tuple[np.ndarray | None, int], ...] | None


@dataclass(frozen=True, eq=False)
class CountedCall:
    """A call of a module in which an operation of its own code noticed channels that were set to zero.

    The number of dimensions and the label maps of its first argument, before the call, and of its result; None where
    the module cannot be run again on some of its channels: see `ModuleTracker`.
    """

    module: str
    input: tuple[int, Maps] | None = None
    output: tuple[int, Maps] | None = None


@dataclass(frozen=True, eq=False)
class Candidate:
    """A number of a user's module with the value that a run of ``labels`` has as its length, in module ``seen``.

    ``alone``: it is in a tuple of which the other numbers were not seen together with it. ``others``: further runs that
    are as long, which have to go together with the first if the number stands for them, too.
    """

    module: str
    cls: type
    attribute: str
    labels: np.ndarray
    seen: str
    alone: bool
    others: tuple[np.ndarray, ...] = ()


@dataclass(frozen=True, eq=False)
class SameWidth:
    """Two runs of equally many labels in a module whose code may take their numbers to be equal: ``read`` of one
    tensor, and ``given`` for the size of another; or one attribute stands for both."""

    module: str
    read: np.ndarray
    given: np.ndarray


Followed = tuple[type, str]
"""A number of all modules of a class."""


def same_widths(read: Sequence[tuple[str, np.ndarray]], given: Sequence[tuple[str, np.ndarray]]) -> list[SameWidth]:
    """Every pair once of a read and a given run of labels of one module that may have to be equally long."""
    found: dict[tuple[str, bytes, bytes], SameWidth] = {}
    for module, one in read:
        for place, other in given:
            if place == module and one.size == other.size > 1 and not np.array_equal(one, other):
                found.setdefault((module, one.tobytes(), other.tobytes()), SameWidth(module, one, other))
    return list(found.values())


Runs = tuple[str, tuple[np.ndarray, ...]]
"""A module, and the labels that an operation in it saw side by side."""


@dataclass(eq=False)
class Trace:
    """What the passes recorded, before channels are made of it.

    ``trains``: the model runs in train mode on these inputs.
    ``trains_differently``: in train mode other tensors are used, or other questions come up, than in eval mode.
    ``computes_differently``: in train mode other operations are done.
    ``trains_randomly``: random numbers are drawn in train mode.
    ``dead_ends`` are those of the MACs that no output depends on.
    ``compared`` are numbers that no operation saw, but a length that the code read is as large: it may compare them.
    ``uncounted`` are the modules of all calls in which zeros were not noticed.
    """

    space: LabelSpace
    tensors: dict[str, TensorLabels]
    aliases: dict[str, str]
    macs: list[MacRecord] = field(default_factory=list)
    dead_ends: list[MacRecord] = field(default_factory=list)
    calls: dict[str, CallShapes] = field(default_factory=dict)
    candidates: list[Candidate] = field(default_factory=list)
    compared: list[Candidate] = field(default_factory=list)
    same_widths: list[SameWidth] = field(default_factory=list)
    elsewhere: list[Candidate] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    counted: list[CountedCall] = field(default_factory=list)
    uncounted: list[str] = field(default_factory=list)
    types: dict[str, type] = field(default_factory=dict)
    batch: int = 1
    trains: bool = False
    trains_differently: bool = False
    computes_differently: bool = False
    trains_randomly: bool = False


def tensors_with_role(trace: Trace, wanted: Role) -> set[str]:
    """Parameters and buffers with an axis whose slots have this role in their layer."""
    marked = np.zeros(trace.space.count, bool)
    for labels, role in trace.space.roles:
        marked[labels] |= role == wanted
    return {
        name
        for name, tensor in trace.tensors.items()
        if any(labels is not None and marked[labels].any() for labels in tensor.axes)
    }


def label_tensors(model: nn.Module, space: LabelSpace) -> tuple[dict[str, TensorLabels], dict[str, str]]:
    """Give every slot of every parameter and buffer a label of its own."""
    tensors: dict[str, TensorLabels] = {}
    aliases: dict[str, str] = {}
    seen: dict[int, str] = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, tensor in named_tensors(model).items():
        if id(tensor) in seen:
            aliases[name] = seen[id(tensor)]
            continue
        seen[id(tensor)] = name
        owner = name.rpartition(".")[0]
        info = TensorInfo(name, tuple(tensor.shape), name in parameters, owner, _blocks(modules, name, tensor))
        labelled = 2 if _is_kernel(modules, name, tensor) else tensor.ndim
        axes = tuple(space.new(info.slots(a)) if n > 1 and a < labelled else None for a, n in enumerate(info.shape))
        tensors[name] = TensorLabels(info, axes)
    return tensors, aliases


def _owner(modules: Mapping[str, nn.Module], name: str) -> nn.Module | None:
    return modules.get(name.rpartition(".")[0].replace(".parametrizations.weight", ""))


def _is_kernel(modules: Mapping[str, nn.Module], name: str, tensor: torch.Tensor) -> bool:
    """Whether this is a convolution's kernel, whose positions (axes 2 and up) never go and so need no labels."""
    return isinstance(_owner(modules, name), nn.modules.conv._ConvNd) and tensor.ndim >= 3


def _blocks(modules: Mapping[str, nn.Module], name: str, tensor: torch.Tensor) -> int:
    """How many blocks of rows choose their own columns: the groups of a grouped convolution's weight."""
    module = _owner(modules, name)
    if not isinstance(module, nn.modules.conv._ConvNd) or module.groups == 1 or tensor.ndim < 3:
        return 1
    return module.groups if tensor.shape[1] > 1 and module.groups < module.in_channels else 1
