"""The dispatch mode under which a model runs: every operator as it is, and its rule after it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from channelwise.inputs.tree import tensors_in
from channelwise.structure import Cause
from channelwise.tracing import rules
from channelwise.tracing.context import TraceContext
from channelwise.tracing.memory.copies import Copy, depends_on_widths
from channelwise.tracing.memory.flow import Flow
from channelwise.tracing.outline import HEAVY, zeros_instead
from channelwise.tracing.rules.pointwise import is_pointwise, pointwise

logger = logging.getLogger(__name__)


class WritesParameters(BaseException):
    """The model writes into its parameters while it runs, so it has to be traced on a copy that owns them.

    Not an ``Exception``: user code that catches those must not swallow it.
    """


_FILLED = ("empty", "full", "ones", "zeros")
_IDLE = {
    getattr(torch.ops.aten, name)
    for name in ("alias", "clone", "contiguous", "copy_", "detach", "_to_copy")
    + tuple(f"new_{name}" for name in _FILLED)
    + tuple(f"{name}_like" for name in _FILLED)
}
"""Operations that compute nothing from the values of their argument."""

_FACTORIES = {getattr(torch.ops.aten, name) for name in (*_FILLED, "rand", "randn")}


class LabelMode(TorchDispatchMode):
    """Runs every operator as it is and lets its rule carry the labels on.

    ``flow`` notes, if it is given, what the operators read and write, and ``copies`` those that depend on widths.
    """

    def __init__(
        self, ctx: TraceContext, protected: Iterable[torch.Tensor], outline: bool, flow: Flow | None = None
    ) -> None:
        super().__init__()
        self.ctx = ctx
        self.outline = outline
        self.flow = flow
        self.copies: list[Copy] = []
        self.protected = {t.untyped_storage()._cdata for t in protected}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # What the rules ask of tensors is nothing that the function watch should see.
        with torch._C.DisableTorchFunction():
            return self._follow(func, args, kwargs or {})

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Else torch would wrap the method above for its compiler: an import of more than a second, and slower calls.
        return False

    def _follow(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        rule, elementwise, composite, random = _lookup(func)
        if composite:
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        ctx = self.ctx
        ctx.random |= random and not _keeps_all(func, args, kwargs)
        if self.protected and func._schema.is_mutable:
            if any(t.untyped_storage()._cdata in self.protected for t in _written(func, args, kwargs)):
                raise WritesParameters
        inputs = tensors_in(args) + tensors_in(kwargs)
        known = [t for t in inputs if ctx.knows(t)]
        out = zeros_instead(func, args) if self.outline and func in HEAVY else func(*args, **kwargs)
        if self.flow is not None:
            written = _written(func, args, kwargs) if func._schema.is_mutable else []
            self.flow.add(func.overloadpacket.__name__.rstrip("_"), inputs, tensors_in(out), written, len(ctx.macs))
        if not known:
            if not inputs and func.overloadpacket in _FACTORIES:
                ctx.mark_fresh(out)
            return out
        ctx.use(known)
        for tensor in known:
            ctx.touched.add(id(tensor))
        ctx.operation = str(func)
        maps = [found[0] for found in map(ctx.maps, known) if found]
        if maps:
            if func.overloadpacket not in _IDLE and "batch_norm" not in ctx.operation:
                ctx.done.append((ctx.operation, ctx.module, tuple(m.labels.flat[0] for m in maps)))
        else:
            weight = all(ctx.is_weight(t) for t in known)
            for tensor in tensors_in(out):
                if not ctx.knows(tensor):
                    ctx.set(tensor, (), weight)
        try:
            if rule is not None:
                rule(ctx, out, *args, **kwargs)
            elif elementwise:
                if any(ctx.maps(t) for t in known):
                    pointwise(ctx, out, func, args, kwargs)
            elif tensors_in(out):
                ctx.freeze_all(known, f"no rule for {func}", Cause.NO_RULE)
        except Exception as error:
            # A rule that cannot follow an operation must not stop the user.
            logger.warning("the rule for %s failed in %s: %r; its channels stay", func, ctx.module, error)
            ctx.freeze_all(known, f"the rule for {func} failed: {type(error).__name__}")
            for tensor in tensors_in(out):
                ctx.set(tensor, ())
        if self.flow is not None and func is torch.ops.aten.clone.default and kwargs.get("memory_format") is not None:
            self._note_copy(self.flow, args[0], out, kwargs["memory_format"])
        return out

    def _note_copy(self, flow: Flow, x: torch.Tensor, out: torch.Tensor, memory_format: torch.memory_format) -> None:
        maps = self.ctx.maps(x)
        labelled = {axis for m in maps for axis, length in enumerate(m.labels.shape) if length > 1}
        if maps and depends_on_widths(x, labelled, memory_format):
            source, target = flow.storages([x, out])
            text = "copied and written into: of one channel this would be no copy, but the tensor that it is taken from"
            self.copies.append(Copy(source, target, len(flow.operations) - 1, maps, self.ctx.because(text)))


def _written(func: Any, args: Any, kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """The tensors that an operation writes into."""
    found = []
    for k, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found += tensors_in(args[k] if k < len(args) else kwargs.get(argument.name))
    return found


def _keeps_all(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether this is dropout, that of attention for example, with a probability of zero."""
    for k, argument in enumerate(func._schema.arguments):
        if argument.name in ("p", "dropout_p", "dropout"):
            given = args[k] if k < len(args) else kwargs.get(argument.name, argument.default_value)
            return isinstance(given, (int, float)) and given == 0
    return False


@cache
def _lookup(func: Any) -> tuple[Any, bool, bool, bool]:
    """The rule of an operator; without one, whether it is element-wise, else whether it may be made of simpler ones.

    Last, whether its result is random.
    """
    rule = rules.find(func)
    elementwise = rule is None and is_pointwise(func)
    factory = func.overloadpacket in _FACTORIES
    random = torch.Tag.nondeterministic_seeded in func.tags
    return rule, elementwise, rule is None and not elementwise and not factory, random
