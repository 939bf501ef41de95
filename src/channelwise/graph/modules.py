"""Follows which module is running, and records the shapes seen by modules that hold sizes of their own."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from torch import nn

from channelwise.graph.context import TraceContext, tensors_in
from channelwise.graph.recording import CallShapes


class ModuleTracker:
    """Tells the context which module is running and records the shapes that modules without tensors see."""

    def __init__(self, model: nn.Module, ctx: TraceContext, calls: dict[str, CallShapes] | None) -> None:
        self.ctx, self.calls = ctx, calls
        self.stack: list[tuple[str, type, frozenset[int]]] = []
        self.deepest = ""
        self.names = {id(m): n for n, m in model.named_modules()}
        self.handles = []
        for module in list(model.modules()):
            self.handles.append(module.register_forward_pre_hook(self._enter, prepend=True))
            self.handles.append(module.register_forward_hook(self._leave, always_call=True))

    def _enter(self, module: nn.Module, args: Any) -> None:
        ctx = self.ctx
        self.stack.append((ctx.module, ctx.module_type, ctx.heads))
        ctx.module, ctx.module_type, ctx.heads = self.names[id(module)], type(module), _heads(module)
        self.deepest = self.ctx.module

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.calls is not None and self.ctx.module not in self.calls and _holds_numbers(module):
            # Our own looking at shapes is nothing that the function watch should see.
            with torch._C.DisableTorchFunction():
                self.calls[self.ctx.module] = CallShapes(self._shape(tensors_in(args)), self._shape(tensors_in(output)))
        self.ctx.module, self.ctx.module_type, self.ctx.heads = self.stack.pop()
        # Where something was raised there is no output, and every caller up to the model is left.
        if output is not None:
            self.deepest = self.ctx.module

    def _shape(self, tensors: list[torch.Tensor]) -> tuple[tuple[np.ndarray | None, int], ...] | None:
        if not tensors:
            return None
        by_axis = {m.axis: m.flat for m in self.ctx.maps(tensors[0]) if m.uniform}
        return tuple((by_axis.get(d), n) for d, n in enumerate(tensors[0].shape))

    def remove(self) -> None:
        """Take the hooks off the traced copy."""
        for handle in self.handles:
            handle.remove()


_HEADS = re.compile(r"(^|_)n?heads?(_\w)?$")


def _heads(module: nn.Module) -> frozenset[int]:
    """How many attention heads a user's module has, by the names that such numbers go by: ``num_heads``, ``heads``."""
    if type(module).__module__.startswith("torch.nn."):
        return frozenset()
    return frozenset(v for name, v in module.__dict__.items() if type(v) is int and v > 1 and _HEADS.search(name))


def _holds_numbers(module: nn.Module) -> bool:
    """Whether a module without parts and parameters has sizes of its own that removed channels may change."""
    if module._modules or any(t is not None for t in module._parameters.values()):
        return False
    return any(
        (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, (tuple, list)) and value)
        for value in module.__dict__.values()
    )
