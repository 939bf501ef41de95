"""Follows which module is running, and records what modules see: shapes, and channels that their code counts."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from channelwise.inputs.tree import tensors_in
from channelwise.tracing.context import Maps, TraceContext
from channelwise.tracing.recording import CallShapes, CountedCall, Trace


class ModuleTracker:
    """Tells the context which module is running; records the shapes that modules without tensors see if ``record``.

    Also records which modules notice zeroed channels in code of their own.
    """

    def __init__(self, model: nn.Module, ctx: TraceContext, trace: Trace, record: bool) -> None:
        self.ctx, self.trace, self.record = ctx, trace, record
        self.stack: list[tuple[str, nn.Module, _Entry]] = []
        self.deepest = ""
        self.names = {id(m): n for n, m in model.named_modules()}
        self.handles = []
        for module in list(model.modules()):
            self.handles.append(module.register_forward_pre_hook(self._enter, prepend=True))
            self.handles.append(module.register_forward_hook(self._leave, always_call=True, with_kwargs=True))

    def _enter(self, module: nn.Module, args: Any) -> None:
        ctx = self.ctx
        self.stack.append((ctx.module, ctx.running, self._entry(args)))
        ctx.module, ctx.running = self.names[id(module)], module
        self.deepest = self.ctx.module

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        name, calls = self.ctx.module, self.trace.calls
        if self.record and name not in calls and _holds_numbers(module):
            # Our own looking at shapes is nothing that the function watch should see.
            with torch._C.DisableTorchFunction():
                calls[name] = CallShapes(self._shape(tensors_in(args)), self._shape(tensors_in(output)))
        self.ctx.module, self.ctx.running, entry = self.stack.pop()
        marks = self.ctx.space.inexact
        if len(marks) > entry.marks and any(reason.module == name for _, reason in marks[entry.marks :]):
            with torch._C.DisableTorchFunction():
                self.trace.counted.append(self._counted(name, module, args, kwargs, output, entry))
        else:
            self.trace.uncounted.append(name)
        # Where something was raised there is no output, and every caller up to the model is left.
        if output is not None:
            self.deepest = self.ctx.module

    def _entry(self, args: Any) -> _Entry:
        marks = len(self.ctx.space.inexact)
        if not args or not isinstance(args[0], torch.Tensor):
            return _Entry(marks)
        with torch._C.DisableTorchFunction():
            # Inference tensors count no versions, so that work in place would not show.
            return _Entry(marks) if args[0].is_inference() else _Entry(marks, args[0]._version, self.ctx.maps(args[0]))

    def _counted(self, name: str, module: nn.Module, args: Any, kwargs: Any, output: Any, entry: _Entry) -> CountedCall:
        """What is recorded of a call; without its sides if the module cannot be run again on some of its channels."""
        unfit = (
            not isinstance(output, torch.Tensor)
            or entry.version is None
            # It works in place: run again, it would not see what it saw.
            or args[0]._version != entry.version
            or any(self.ctx.maps(t) for t in [*tensors_in(args[1:]), *tensors_in(kwargs)])
            or _keeps_something(module)
        )
        if unfit:
            return CountedCall(name)
        return CountedCall(name, (args[0].ndim, entry.maps), (output.ndim, self.ctx.maps(output)))

    def _shape(self, tensors: list[torch.Tensor]) -> tuple[tuple[np.ndarray | None, int], ...] | None:
        if not tensors:
            return None
        by_axis = {m.axis: m.flat for m in self.ctx.maps(tensors[0]) if m.uniform}
        return tuple((by_axis.get(d), n) for d, n in enumerate(tensors[0].shape))

    def remove(self) -> None:
        """Take the hooks off the traced copy."""
        for handle in self.handles:
            handle.remove()


class _Entry(NamedTuple):
    """What is noted when a module is entered: how many marks of inexact channels there were, and its first argument."""

    marks: int
    version: int | None = None
    maps: Maps = ()


def _keeps_something(module: nn.Module) -> bool:
    """Whether calling the code of a module again may change something, or would not be all that a call does.

    Buffers may be statistics, tensors in attributes are computed by hooks, and hooks (other than the tracker's two) or
    a patched ``forward`` may do anything.
    """
    return (
        next(module.buffers(), None) is not None
        or "forward" in module.__dict__
        or any(isinstance(value, torch.Tensor) for value in module.__dict__.values())
        or len(module._forward_hooks) + len(module._forward_pre_hooks) > 2
    )


def _holds_numbers(module: nn.Module) -> bool:
    """Whether a module without parts and parameters has sizes of its own that removed channels may change."""
    if module._modules or any(t is not None for t in module._parameters.values()):
        return False
    return any(
        (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, (tuple, list)) and value)
        for value in module.__dict__.values()
    )
