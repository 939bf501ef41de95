"""Run a model once with labels flowing along: the dispatch mode, parameter labels, and the eval and train passes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from channelwise.graph import rules
from channelwise.graph.context import MacRecord, TraceContext, tensors_in
from channelwise.graph.labels import LabelMap, LabelSpace, along
from channelwise.graph.rules.pointwise import is_pointwise, pointwise
from channelwise.graph.structure import Reason, TensorInfo

logger = logging.getLogger(__name__)


class WritesParameters(BaseException):
    """The model writes into its parameters while it runs, so it has to be traced on a copy that owns them.

    Not an ``Exception``: user code that catches those must not swallow it.
    """


@dataclass(frozen=True, eq=False)
class TensorLabels:
    """The labels of one parameter or buffer: (slots,) for every axis; axes of length 1 have none."""

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


@dataclass(eq=False)
class Trace:
    """What the passes recorded, before channels are made of it."""

    space: LabelSpace
    tensors: dict[str, TensorLabels]
    aliases: dict[str, str]
    macs: list[MacRecord] = field(default_factory=list)
    calls: dict[str, CallShapes] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    batch: int = 1


def named_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor, bool]]:
    """All parameters, then all buffers: (qualified name, tensor, is a parameter); shared tensors come repeatedly."""
    for name, parameter in model.named_parameters(remove_duplicate=False):
        yield name, parameter, True
    for name, buffer in model.named_buffers(remove_duplicate=False):
        yield name, buffer, False


def label_tensors(model: nn.Module, space: LabelSpace) -> tuple[dict[str, TensorLabels], dict[str, str]]:
    """Give every slot of every parameter and buffer a label of its own."""
    tensors: dict[str, TensorLabels] = {}
    aliases: dict[str, str] = {}
    seen: dict[int, str] = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, tensor, is_parameter in named_tensors(model):
        if id(tensor) in seen:
            aliases[name] = seen[id(tensor)]
            continue
        seen[id(tensor)] = name
        owner = name.rpartition(".")[0]
        info = TensorInfo(name, tuple(tensor.shape), is_parameter, owner, _blocks(modules, name, tensor))
        axes = tuple(space.new(info.slots(a)) if n > 1 else None for a, n in enumerate(info.shape))
        tensors[name] = TensorLabels(info, axes)
    return tensors, aliases


def _blocks(modules: Mapping[str, nn.Module], name: str, tensor: torch.Tensor) -> int:
    """How many blocks of rows choose their own columns: the groups of a grouped convolution's weight."""
    module = modules.get(name.rpartition(".")[0].replace(".parametrizations.weight", ""))
    if not isinstance(module, nn.modules.conv._ConvNd) or module.groups == 1 or tensor.ndim < 3:
        return 1
    return module.groups if tensor.shape[1] > 1 and module.groups < module.in_channels else 1


_FACTORIES = {getattr(torch.ops.aten, n) for n in ("zeros", "ones", "full", "empty", "rand", "randn")}


class LabelMode(TorchDispatchMode):
    """Runs every operator as it is and lets its rule carry the labels on."""

    def __init__(self, ctx: TraceContext, protected: Iterable[torch.Tensor], outline: bool) -> None:
        super().__init__()
        self.ctx = ctx
        self.outline = outline
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
        rule, elementwise, composite = _lookup(func)
        if composite:
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        ctx = self.ctx
        if self.protected and func._schema.is_mutable:
            self._refuse_writing(func, args, kwargs)
        inputs = tensors_in(args) + tensors_in(kwargs)
        known = [t for t in inputs if ctx.knows(t)]
        out = _zeros_instead(func, args) if self.outline and func in _HEAVY else func(*args, **kwargs)
        if not known:
            if not inputs and func.overloadpacket in _FACTORIES:
                ctx.mark_fresh(out)
            return out
        ctx.use(known)
        for tensor in known:
            ctx.touched.add(id(tensor))
        ctx.operation = str(func)
        if not any(ctx.maps(t) for t in known):
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
                ctx.freeze_all(known, f"no rule for {func}")
        except Exception as error:
            # A rule that cannot follow an operation must not stop the user.
            logger.warning("the rule for %s failed in %s: %r; its channels stay", func, ctx.module, error)
            ctx.freeze_all(known, f"the rule for {func} failed: {type(error).__name__}")
            for tensor in tensors_in(out):
                ctx.set(tensor, ())
        return out

    def _refuse_writing(self, func: Any, args: Any, kwargs: Any) -> None:
        for k, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            value = args[k] if k < len(args) else kwargs.get(argument.name)
            if any(t.untyped_storage()._cdata in self.protected for t in tensors_in(value)):
                raise WritesParameters


@cache
def _lookup(func: Any) -> tuple[Any, bool, bool]:
    """The rule of an operator; without one, whether it is element-wise, else whether it may be made of simpler ones."""
    rule = rules.find(func)
    elementwise = rule is None and is_pointwise(func)
    factory = func.overloadpacket in _FACTORIES
    return rule, elementwise, rule is None and not elementwise and not factory


def _convolution_shape(
    x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, *rest: Any
) -> list[int]:
    transposed, output_padding, groups = rest[:3]
    shape = [x.shape[0], weight.shape[1] * groups if transposed else weight.shape[0]]
    for d, n in enumerate(x.shape[2:]):
        step, border = stride[d % len(stride)], padding[d % len(padding)]
        reach = dilation[d % len(dilation)] * (weight.shape[d + 2] - 1)
        if transposed:
            shape.append((n - 1) * step - 2 * border + reach + output_padding[d % len(output_padding)] + 1)
        else:
            shape.append((n + 2 * border - reach - 1) // step + 1)
    return shape


_HEAVY: dict[Any, Callable[..., list[int]]] = {
    torch.ops.aten.convolution.default: _convolution_shape,
    torch.ops.aten.mm.default: lambda a, b: [a.shape[0], b.shape[1]],
    torch.ops.aten.addmm.default: lambda bias, a, b: [a.shape[0], b.shape[1]],
    torch.ops.aten.bmm.default: lambda a, b: [a.shape[0], a.shape[1], b.shape[2]],
}
"""Operators that take most of a network's time, and the shape of their result."""


def _zeros_instead(func: Any, args: Any) -> torch.Tensor:
    """Zeros of the shape, type and memory format that the operator would return."""
    first = args[0]
    out = torch.zeros(_HEAVY[func](*args), dtype=first.dtype, device=first.device)
    if first.ndim == 4 and not first.is_contiguous() and first.is_contiguous(memory_format=torch.channels_last):
        out = out.contiguous(memory_format=torch.channels_last)
    return out


_ADAPTING = {
    torch.flatten,
    torch.Tensor.flatten,
    torch.chunk,
    torch.Tensor.chunk,
    torch.pixel_shuffle,
    torch.pixel_unshuffle,
    nn.functional.instance_norm,
    torch.instance_norm,
    torch._C._nn.adaptive_avg_pool2d,
    torch._C._nn.adaptive_avg_pool3d,
    torch._C._nn.pad,
}
"""Functions that compute every size from their input."""

_LEAVING = {
    torch.Tensor.numpy,
    torch.Tensor.__array__,
    torch.Tensor.tolist,
    torch.Tensor.__dlpack__,
    torch.Tensor.data_ptr,
}
"""Methods by which values leave torch, where no label can follow them."""


class FunctionWatch(TorchFunctionMode):
    """Notices calls that need no verification because they adapt, and values that leave torch."""

    def __init__(self, ctx: TraceContext) -> None:
        super().__init__()
        self.ctx = ctx

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        ctx = self.ctx
        if func in _LEAVING:
            ctx.operation = f"Tensor.{func.__name__}"
            ctx.use(args[:1])
            ctx.freeze_all(args[:1], "the values leave torch, where they cannot be followed")
        if ctx.adapts or func not in _ADAPTING:
            return func(*args, **kwargs)
        ctx.adapts = True
        try:
            return func(*args, **kwargs)
        finally:
            ctx.adapts = False


class ModuleTracker:
    """Tells the context which module is running and records the shapes that modules without tensors see."""

    def __init__(self, model: nn.Module, ctx: TraceContext, calls: dict[str, CallShapes] | None) -> None:
        self.ctx, self.calls = ctx, calls
        self.stack: list[tuple[str, type]] = []
        self.deepest = ""
        self.names = {id(m): n for n, m in model.named_modules()}
        self.handles = []
        for module in list(model.modules()):
            self.handles.append(module.register_forward_pre_hook(self._enter, prepend=True))
            self.handles.append(module.register_forward_hook(self._leave, always_call=True))

    def _enter(self, module: nn.Module, args: Any) -> None:
        self.stack.append((self.ctx.module, self.ctx.module_type))
        self.ctx.module, self.ctx.module_type = self.names[id(module)], type(module)
        self.deepest = self.ctx.module

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.calls is not None and self.ctx.module not in self.calls and _holds_numbers(module):
            ins, outs = tensors_in(args), tensors_in(output)
            self.calls[self.ctx.module] = CallShapes(self._shape(ins), self._shape(outs))
        self.ctx.module, self.ctx.module_type = self.stack.pop()
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


def _holds_numbers(module: nn.Module) -> bool:
    """Whether a module without parts and parameters has sizes of its own that removed channels may change."""
    if module._modules or any(t is not None for t in module._parameters.values()):
        return False
    return any(
        (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, (tuple, list)) and value)
        for value in module.__dict__.values()
    )


@contextmanager
def undisturbed_randomness(device_tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """Restore the state of torch's random number generators afterwards."""
    devices = sorted({t.device.index or 0 for t in device_tensors if t.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        yield


def run_labelled(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    trace: Trace,
    *,
    record: bool,
    freeze_outputs: bool = True,
    protect: bool = False,
    outline: bool = False,
) -> tuple[TraceContext, list[torch.Tensor]]:
    """One forward pass with labels, and its output tensors. ``model`` is a private copy.

    ``record`` keeps MACs and module shapes; ``outline`` replaces the results of convolutions and matrix products by
    zeros, which is quicker and shows the same labels. An exception leaves with the name of the running module attached.
    """
    ctx = TraceContext(trace.space)
    stored = {name: tensor for name, tensor, _ in named_tensors(model)}
    for name, labels in trace.tensors.items():
        ctx.set(stored[name], labels.maps(), True)
    for tensor in tensors_in(list(args)) + tensors_in(dict(kwargs)):
        ctx.set(tensor, ())
    tracker = ModuleTracker(model, ctx, trace.calls if record else None)
    mode = LabelMode(ctx, model.parameters() if protect else (), outline)
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(FunctionWatch(ctx))
            stack.enter_context(mode)
            output = model(*args, **kwargs)
    except Exception as error:
        error._channelwise_module = tracker.deepest  # type: ignore[attr-defined]
        raise
    finally:
        tracker.remove()
    outputs = output_tensors(output)
    ctx.use(outputs)
    for tensor in outputs if freeze_outputs else ():
        for m in ctx.maps(tensor):
            trace.space.freeze(m.labels, Reason("output", "", "an output of the network"))
    if record:
        trace.macs = ctx.macs
    ctx.touched = {id(t) for t in stored.values()} & ctx.touched
    return ctx, outputs


def output_tensors(output: Any) -> list[torch.Tensor]:
    """All tensors in what a model returned: nested containers, or the attributes of an object."""
    if isinstance(output, (torch.Tensor, list, tuple, dict)):
        return tensors_in(output)
    if hasattr(output, "__dict__"):
        return tensors_in(dict(vars(output)))
    return []


def _train_pass(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], trace: Trace, shared: bool
) -> set[int]:
    """Follow the training path: first with outlined values, then for real, last with the batch doubled if it is 1."""
    space = trace.space
    records: tuple[list[Any], ...] = (space.pairs, space.inexact, space.parts, space.questions, space.roles)
    marks = [len(r) for r in records]
    attempts: list[tuple[Any, Any, bool]] = [(args, kwargs, True), (args, kwargs, False)]
    if trace.batch == 1:
        attempts.insert(1, (_doubled(list(args)), _doubled(dict(kwargs)), True))
    error: Exception | None = None
    for some_args, some_kwargs, outline in attempts:
        try:
            return run_labelled(model, some_args, some_kwargs, trace, record=False, protect=shared, outline=outline)[
                0
            ].touched
        except Exception as failure:
            # Whatever the user's training path raises, it is skipped and said so.
            error = error or failure
            for recorded, length in zip(records, marks, strict=True):
                del recorded[length:]
    trace.notes.append(
        f"the training path was skipped, as it does not run on the inputs alone: {type(error).__name__}: {error}"
    )
    logger.info("%s", trace.notes[-1])
    return set()


def _doubled(value: Any) -> Any:
    """The same arguments with every batch of 1 repeated, for batch norms that want more than one value a channel."""
    if isinstance(value, torch.Tensor):
        return torch.cat([value, value]) if value.ndim and value.shape[0] == 1 else value
    if isinstance(value, dict):
        return {k: _doubled(v) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_doubled(v) for v in value)
    return value


def trace_passes(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], *, shared: bool) -> Trace:
    """Trace in eval and in train mode, on a private copy whose buffers and flags may change.

    ``shared``: its parameters are the user's own; WritesParameters is raised before anything is written into them.
    """
    space = LabelSpace()
    tensors, aliases = label_tensors(model, space)
    trace = Trace(space, tensors, aliases)
    first = next(iter(tensors_in(list(args)) + tensors_in(dict(kwargs))), None)
    trace.batch = first.shape[0] if first is not None and first.ndim else 1
    stored = {name: tensor for name, tensor, _ in named_tensors(model)}
    model.eval()
    touched = set(run_labelled(model, args, kwargs, trace, record=True, protect=shared)[0].touched)
    model.train()
    touched |= _train_pass(model, args, kwargs, trace, shared)
    model.eval()
    unused = Reason("unused", "", "never used while the model ran on the example inputs")
    for name, labels in tensors.items():
        if id(stored[name]) not in touched:
            for axis in labels.axes:
                if axis is not None:
                    space.freeze(axis, unused)
    return trace
