"""What a trace writes down: labels of parameters and buffers, executed MACs, shapes that modules see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from channelwise.structure import NormedWeight, TensorInfo
from channelwise.tensors import named_tensors
from channelwise.tracing.code.other_ways import Candidate
from channelwise.tracing.context import Maps
from channelwise.tracing.decisions import Decisions
from channelwise.tracing.labels import LabelMap, LabelSpace, along
from channelwise.tracing.macs import MacRecord
from channelwise.tracing.program import Program
from channelwise.tracing.provenance import Use


@dataclass(frozen=True, eq=False)
class TensorLabels:
    """The labels of one parameter or buffer: (slots,) of every axis, none for axes of length 1 and kernel positions.

    ``divided``: the axis along which removed slots keep their values in a sparse model, see `NormedWeight`.
    """

    info: TensorInfo
    axes: tuple[np.ndarray | None, ...]
    divided: int | None = None

    def maps(self) -> list[LabelMap]:
        """Label maps of the tensor itself."""
        found = []
        for axis, labels in enumerate(self.axes):
            if labels is None:
                continue
            ndim = len(self.info.shape)
            if axis == 1 and self.info.blocks > 1:
                grid = np.repeat(labels.reshape(self.info.blocks, -1), self.info.shape[0] // self.info.blocks, axis=0)
                found.append(LabelMap(grid.reshape(grid.shape + (1,) * (ndim - 2)), 1, axis != self.divided))
            else:
                found.append(along(labels, axis, ndim, axis != self.divided))
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
class Pass:
    """One labelled run of the model: its arguments, what decided in it and what ran.

    ``outlined``: costly operators gave zeros.
    """

    train: bool
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    outlined: bool
    decisions: Decisions = field(default_factory=Decisions)
    program: Program = field(default_factory=Program)

    def again(self, outlined: bool) -> Pass:
        """The same run of another model, with the decisions of this one."""
        return Pass(self.train, self.args, self.kwargs, outlined, self.decisions.shown())


@dataclass(eq=False)
class Trace:
    """What the passes recorded, before channels are made of it.

    ``passes``: the labelled runs, in eval mode and, if the model runs in it on these inputs, in train mode.
    ``uses``: what the numbers of attributes, and sizes that the code read, were used for.
    ``elsewhere``: numbers that only other ways through a module than ``forward`` read.
    ``uncounted`` are the modules of all calls in which zeros were not noticed.
    ``remembers``: numbers of attributes remember where they come from.
    """

    space: LabelSpace
    tensors: dict[str, TensorLabels]
    aliases: dict[str, str]
    passes: list[Pass] = field(default_factory=list)
    macs: list[MacRecord] = field(default_factory=list)
    calls: dict[str, CallShapes] = field(default_factory=dict)
    uses: list[Use] = field(default_factory=list)
    elsewhere: list[Candidate] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    counted: list[CountedCall] = field(default_factory=list)
    uncounted: list[str] = field(default_factory=list)
    types: dict[str, type] = field(default_factory=dict)
    batch: int = 1
    remembers: bool = True
    normed: Sequence[NormedWeight] = ()


def label_tensors(
    model: nn.Module, space: LabelSpace, normed: Sequence[NormedWeight] = ()
) -> tuple[dict[str, TensorLabels], dict[str, str]]:
    """Give every slot of every parameter and buffer a label of its own."""
    tensors: dict[str, TensorLabels] = {}
    aliases: dict[str, str] = {}
    seen: dict[int, str] = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    divided = {one.weight: one.axis for one in normed if one.right is None}
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
        tensors[name] = TensorLabels(info, axes, divided.get(name))
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
    # What normalises the weight along its columns has one row for all blocks.
    has_rows = tensor.shape[0] % module.groups == 0
    return module.groups if has_rows and tensor.shape[1] > 1 and module.groups < module.in_channels else 1
