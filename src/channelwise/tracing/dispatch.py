"""The dispatch mode under which a model runs: every operator as it is, and its rule after it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from channelwise.inputs.tree import tensors_in
from channelwise.structure import Cause
from channelwise.tracing import rules
from channelwise.tracing.context import TraceContext
from channelwise.tracing.decisions import Decisions
from channelwise.tracing.macs import Macs
from channelwise.tracing.memory.copies import Copy, depends_on_widths
from channelwise.tracing.memory.flow import Flow
from channelwise.tracing.outline import HEAVY, zeros_instead
from channelwise.tracing.program import Kind, Program, kind_of
from channelwise.tracing.rules.pointwise import is_pointwise, pointwise

logger = logging.getLogger(__name__)


class WritesParameters(BaseException):
    """The model writes into its parameters while it runs, so it has to be traced on a copy that owns them.

    Not an ``Exception``: user code that catches those must not swallow it.
    """


_FACTORIES = {getattr(torch.ops.aten, name) for name in ("empty", "full", "ones", "zeros", "rand", "randn")}

_DECIDING = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}

_PICKING = {torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_, torch.ops.aten.masked_select}
"""Operators of which masks decide how many elements there are."""


class LabelMode(TorchDispatchMode):
    """Runs every operator as it is and lets its rule carry the labels on.

    ``program`` notes the operations, ``flow``, if there is one, what they read and write; ``copies`` are then those
    that depend on widths. ``macs`` counts products. ``decisions`` are noted in the first run and taken in others.
    ``outlined``: costly operators give zeros, which is quicker and shows the same labels. WritesParameters is raised
    before anything is written into ``protected`` tensors.
    """

    def __init__(
        self,
        ctx: TraceContext,
        decisions: Decisions,
        program: Program,
        *,
        outlined: bool,
        flow: Flow | None = None,
        macs: Macs | None = None,
        protected: Iterable[torch.Tensor] = (),
    ) -> None:
        super().__init__()
        self.macs = macs
        self.ctx, self.decisions, self.program, self.outlined, self.flow = ctx, decisions, program, outlined, flow
        self.copies: list[Copy] = []
        self.protected = {t.untyped_storage()._cdata for t in protected}
        self.drawn = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # What the rules ask of tensors is nothing that the function watch should see.
        with torch._C.DisableTorchFunction():
            return self._follow(func, args, kwargs or {})

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Else torch would wrap the method above for its compiler: an import of more than a second, and slower calls.
        return False

    def _follow(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        known_as = _lookup(func)
        if known_as.composite:
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        ctx = self.ctx
        written = _written(func, args, kwargs) if known_as.writes else []
        if self.protected and written:
            if any(t.untyped_storage()._cdata in self.protected for t in written):
                raise WritesParameters
        inputs = tensors_in(args) + tensors_in(kwargs)
        known = [t for t in inputs if ctx.knows(t)]
        ctx.operation = known_as.name
        out = self._computed(func, known_as, args, kwargs, known)
        if self.flow is not None:
            self.flow.add(func.overloadpacket.__name__.rstrip("_"), inputs, tensors_in(out), written)
        if not known:
            if not inputs and func.overloadpacket in _FACTORIES:
                ctx.mark_fresh(out)
            elif self.macs is not None:
                self.macs.add(ctx, func, out, args, kwargs)
            return out
        ctx.use(known)
        for tensor in known:
            ctx.touched.add(id(tensor))
        if not any(ctx.maps(t) for t in known):
            weight = all(ctx.is_weight(t) for t in known)
            for tensor in tensors_in(out):
                if not ctx.knows(tensor):
                    ctx.set(tensor, (), weight)
        if known_as.kind is Kind.LAYOUT:
            self._label(func, known_as, out, args, kwargs, known)
        else:
            self._note(func, known_as, out, args, kwargs, known)
        if self.macs is not None:
            self.macs.add(ctx, func, out, args, kwargs)
        if self.flow is not None and func is torch.ops.aten.clone.default and kwargs.get("memory_format") is not None:
            self._note_copy(self.flow, args[0], out, kwargs["memory_format"])
        return out

    def _note(self, func: Any, known_as: _Known, out: Any, args: Any, kwargs: Any, known: list[torch.Tensor]) -> None:
        """Label the results, and note the operation in the program."""
        ctx, program = self.ctx, self.program
        computes = known_as.kind is Kind.COMPUTING
        # Element-wise operations show in their results what they were given.
        given = [program.result(ctx, t) for t in known] if computes and not known_as.elementwise else []
        constants = [t for t in tensors_in((args, kwargs)) if not ctx.knows(t)]
        self._label(func, known_as, out, args, kwargs, known)
        results = [program.result(ctx, t) for t in tensors_in(out)] if computes else []
        program.add(ctx, func, args, kwargs, (*given, *results), constants)

    def _computed(
        self, func: Any, known_as: _Known, args: Any, kwargs: dict[str, Any], known: list[torch.Tensor]
    ) -> Any:
        """What the operator gives: zeros for costly ones if outlined; what decides is what decided in the first run."""
        if known_as.random:
            # The same numbers, whatever was drawn before: constants must not differ by chance.
            self.drawn += 1
            torch.default_generator.manual_seed(self.drawn)
        ctx = self.ctx
        if func.overloadpacket in _PICKING:
            masks = [t for t in tensors_in(args[1:2]) if t.dtype in (torch.bool, torch.uint8)]
            shown = {id(t): self.decisions.decide("mask", ctx.module, [t], t) for t in masks}
            if any(shown[id(t)] is not t for t in masks):
                args = (args[0], _replaced(args[1], shown), *args[2:])
        if self.outlined and known and func in HEAVY:
            # What is computed from constants is one, too, and its values are compared.
            return zeros_instead(func, args, kwargs)
        out = func(*args, **kwargs)
        if known_as.decides and known:
            decided = self.decisions.decide(known_as.name, ctx.module, known, out)
            return decided.clone() if isinstance(decided, torch.Tensor) and decided is not out else decided
        return out

    def _label(
        self, func: Any, known_as: _Known, out: Any, args: Any, kwargs: dict[str, Any], known: list[torch.Tensor]
    ) -> None:
        """Let the rule carry the labels on."""
        ctx = self.ctx
        try:
            if known_as.rule is not None:
                known_as.rule(ctx, out, *args, **kwargs)
            elif known_as.elementwise:
                if any(ctx.maps(t) for t in known):
                    pointwise(ctx, out, func, args, kwargs)
            elif results := tensors_in(out):
                ctx.freeze_all(known, f"no rule for {func}", Cause.NO_RULE)
                for tensor in results:
                    ctx.set(tensor, ())
        except Exception as error:
            # A rule that cannot follow an operation must not stop the user.
            logger.warning("the rule for %s failed in %s: %r; its channels stay", func, ctx.module, error)
            ctx.freeze_all(known, f"the rule for {func} failed: {type(error).__name__}", Cause.NO_RULE)
            for tensor in tensors_in(out):
                ctx.set(tensor, ())

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
    for k, name in _written_arguments(func):
        found += tensors_in([args[k] if k < len(args) else kwargs.get(name)])
    return found


@cache
def _written_arguments(func: Any) -> list[tuple[int, str]]:
    arguments = enumerate(func._schema.arguments)
    return [(k, a.name) for k, a in arguments if a.alias_info is not None and a.alias_info.is_write]


def _replaced(masks: Any, shown: dict[int, torch.Tensor]) -> Any:
    if isinstance(masks, torch.Tensor):
        return shown.get(id(masks), masks)
    return [m if m is None else _replaced(m, shown) for m in masks]


class _Known(NamedTuple):
    """What is known of an operator: its name and rule, else whether it is element-wise or may be made of simpler ones.

    ``random``: it draws random numbers. ``decides``: how many elements it gives, or a number, depends on values.
    """

    name: str
    rule: Any
    elementwise: bool
    composite: bool
    random: bool
    decides: bool
    writes: bool
    kind: Kind


@cache
def _lookup(func: Any) -> _Known:
    rule = rules.find(func)
    elementwise = rule is None and is_pointwise(func)
    factory = func.overloadpacket in _FACTORIES
    decides = not _DECIDING.isdisjoint(func.tags) and func.overloadpacket not in _PICKING
    return _Known(
        str(func), rule, elementwise, rule is None and not elementwise and not factory,
        torch.Tag.nondeterministic_seeded in func.tags, decides or "::nms" in func._schema.name,
        func._schema.is_mutable, kind_of(func),
    )  # fmt: skip
