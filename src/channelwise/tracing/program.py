"""The program of a traced run: its operations in order, what they compute with, and the labels of what they give.

Two programs are compared to see whether the user's code adapts to fewer channels, see `channelwise.verify.differences`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch

from channelwise.inputs.example import is_constant
from channelwise.tracing.context import TraceContext

_LAYOUT = {
    "alias", "cat", "chunk", "clone", "contiguous", "detach", "expand", "permute", "repeat", "reshape", "split",
    "split_with_sizes", "squeeze", "stack", "t", "transpose", "unbind", "unsafe_split", "unsqueeze", "view",
    "_reshape_alias", "_to_copy", "_unsafe_view",
}  # fmt: skip
"""Operators that only move elements: what computes with these shows which they are and where. Which of them run also
depends on how sizes lie in memory."""

_MOVING = {"flip", "narrow", "select", "slice"}
"""Operators that pick elements by numbers, or reverse axes that have no labels."""

_SIZED = {
    "arange", "as_strided", "convolution", "empty", "empty_strided", "full", "linspace", "native_group_norm",
    "native_layer_norm", "new_empty", "new_empty_strided", "new_full", "new_ones", "new_zeros", "ones", "rand",
    "randint", "randn", "repeat", "repeat_interleave", "split", "split_with_sizes", "unsafe_split", "zeros",
    "_fused_rms_norm",
}  # fmt: skip
"""Operators whose whole numbers are lengths, which sizes show."""

_RANGES = ("arange", "linspace")

_ENOUGH = 1 << 16
"""Elements of a constant that are looked at."""


UNTOLD = -1
"""Stands for labels that are no run along one axis."""


class Kind(Enum):
    """What a program notes of an operator."""

    LAYOUT = 0
    """Nothing."""
    MOVING = 1
    """Its numbers."""
    COMPUTING = 2
    """Its numbers, what it takes and what it gives."""


@cache
def kind_of(func: Any) -> Kind:
    """What a program notes of this operator."""
    name = func.overloadpacket.__name__.rstrip("_")
    return Kind.LAYOUT if name in _LAYOUT else Kind.MOVING if name in _MOVING else Kind.COMPUTING


class Result(NamedTuple):
    """A tensor that an operation gave, or took if its results do not show it.

    ``runs``: an axis, and the labels along it by their number in `Program.runs`. ``follows``: the tensor was computed
    from the model's inputs, parameters or buffers.
    """

    shape: tuple[int, ...]
    runs: tuple[tuple[int, int], ...]
    follows: bool


class Operation(NamedTuple):
    """An ATen operator in a module; the numbers and the constant tensors (digests by shape) it computes with."""

    name: str
    module: str
    numbers: tuple[Any, ...]
    constants: tuple[tuple[tuple[int, ...], bytes], ...]
    results: tuple[Result, ...]


@dataclass(eq=False)
class Program:
    """The operations of a run that read something of the model, in their order, and what the run returned.

    ``runs`` are the different runs of labels (n,) along axes of results.
    """

    operations: list[Operation] = field(default_factory=list)
    runs: list[np.ndarray] = field(default_factory=list)
    _known_runs: dict[bytes, int] = field(default_factory=dict)

    def add(
        self, ctx: TraceContext, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any],
        results: tuple[Result, ...], constants: Iterable[torch.Tensor],
    ) -> None:  # fmt: skip
        """The next operation; ``results`` show what it does, ``constants`` are tensors made from nothing."""
        name = func.overloadpacket.__name__.rstrip("_")
        numbers = tuple(_numbers(func, name, args, kwargs, ctx))
        if kind_of(func) is Kind.MOVING and not numbers:
            # All of an axis is no slice of it: torch leaves that out.
            return
        digests = tuple((tuple(t.shape), _digest(t)) for t in constants)
        self.operations.append(Operation(f"{func.namespace}.{name}", ctx.module, numbers, digests, results))

    def add_outputs(self, ctx: TraceContext, outputs: Iterable[torch.Tensor]) -> None:
        """What the model returned."""
        self.operations.append(Operation("output", "", (), (), tuple(self.result(ctx, t) for t in outputs)))

    def result(self, ctx: TraceContext, tensor: torch.Tensor) -> Result:
        """Shape and labels of a tensor; those that differ between the blocks of a grouped weight are not told."""
        runs = tuple((m.axis, self._number_of(m.flat) if m.uniform else UNTOLD) for m in ctx.maps(tensor))
        return Result(() if tensor.is_nested else tuple(tensor.shape), runs, ctx.knows(tensor))

    def _number_of(self, labels: np.ndarray) -> int:
        key = labels.tobytes()
        if len(key) > 64:
            key = hashlib.blake2b(key, digest_size=16).digest()
        number = self._known_runs.get(key)
        if number is None:
            number = self._known_runs[key] = len(self.runs)
            self.runs.append(labels)
        return number


def _numbers(func: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], ctx: TraceContext) -> Iterable[Any]:
    """Numbers that are computed with: scalars, and whole numbers that are no lengths."""
    if name == "flip":
        x, labelled = args[0], {m.axis for m in ctx.maps(args[0])}
        yield from (d % x.ndim for d in args[1] if d % x.ndim not in labelled)
        return
    for position, argument, is_scalar in _numeric_arguments(func):
        value = args[position] if position < len(args) else kwargs.get(argument)
        if is_scalar:
            if isinstance(value, (int, float, complex)) and not isinstance(value, bool) and name not in _RANGES:
                yield repr(value)
        elif name == "slice":
            dim = (args[1] if len(args) > 1 else 0) % args[0].ndim
            if (
                value is not None
                and argument in ("start", "end", "step")
                and all(m.axis != dim for m in ctx.maps(args[0]))
            ):
                n = args[0].shape[dim]
                yield min(max(value + n if value < 0 else value, 0), n)
        elif name not in _SIZED and value is not None:
            yield tuple(value) if isinstance(value, (list, tuple)) else value


@cache
def _numeric_arguments(func: Any) -> list[tuple[int, str, bool]]:
    """Position and name of the arguments that may be numbers; whether these are scalars."""
    found = []
    for position, argument in enumerate(func._schema.arguments):
        kind = str(argument.type).lower()
        if "tensor" in kind or "number" in kind or "float" in kind or "scalar" in kind:
            found.append((position, argument.name, True))
        elif "int" in kind and argument.name not in ("dtype", "layout", "memory_format", "device", "size"):
            found.append((position, argument.name, False))
    return found


def _digest(constant: torch.Tensor) -> bytes:
    if constant.is_meta:  # it has no values: torch.func makes such ones
        return b""
    if constant.layout is not torch.strided:
        constant = constant.to_sparse().coalesce().values()
    flat = constant.detach().reshape(-1)
    if flat.numel() and is_constant(flat):
        # Of one value everywhere, it may have any size.
        return f"all {flat[0].item()}".encode()
    some = flat[:: max(flat.numel() // _ENOUGH, 1)].contiguous().cpu()
    if not some.numel():
        return b""
    return hashlib.blake2b(some.view(torch.uint8).numpy().tobytes(), digest_size=16).digest()
