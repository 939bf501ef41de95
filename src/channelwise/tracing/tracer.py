"""Run a model with labels flowing along, once in eval and once in train mode."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from channelwise.inputs.example import doubled, number_of_samples
from channelwise.inputs.tree import output_values, tensors_in
from channelwise.structure import Cause, Reason
from channelwise.tensors import named_tensors
from channelwise.tracing.code.numbers import attribute_of, candidates
from channelwise.tracing.code.other_ways import candidates_elsewhere
from channelwise.tracing.code.watch import FunctionWatch, ask_where_widths_are_read, names_reached
from channelwise.tracing.context import TraceContext
from channelwise.tracing.dispatch import LabelMode
from channelwise.tracing.labels import LabelSpace
from channelwise.tracing.memory.copies import written_into
from channelwise.tracing.memory.dead_ends import dead_ends
from channelwise.tracing.memory.flow import Flow
from channelwise.tracing.modules import ModuleTracker
from channelwise.tracing.recording import Candidate, Trace, label_tensors, same_widths

logger = logging.getLogger(__name__)


@contextmanager
def undisturbed_randomness(device_tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """Restore the state of torch's random number generators afterwards."""
    devices = sorted({t.device.index or 0 for t in device_tensors if t.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        yield


@contextmanager
def _no_cached_casts() -> Iterator[None]:
    """Keep autocast from handing out casts of parameters that were made before labels were watched."""
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    torch.clear_autocast_cache()
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)


def run_labelled(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    trace: Trace,
    *,
    record: bool,
    freeze: bool = True,
    protect: bool = False,
    outline: bool = False,
) -> tuple[TraceContext, list[torch.Tensor]]:
    """One forward pass with labels, and the values that it returned. ``model`` is a private copy.

    ``record`` keeps MACs and module shapes; ``freeze``: the channels of outputs stay, and two of copies that must not
    become views; ``outline`` replaces the results of convolutions and matrix products by
    zeros, which is quicker and shows the same labels. An exception leaves with the name of the running module attached.
    """
    ctx = TraceContext(trace.space)
    stored = named_tensors(model)
    for name, labels in trace.tensors.items():
        ctx.set(stored[name], labels.maps(), True)
    for tensor in tensors_in(list(args)) + tensors_in(dict(kwargs)):
        ctx.set(tensor, ())
    tracker = ModuleTracker(model, ctx, trace, record)
    flow = Flow() if freeze else None
    mode = LabelMode(ctx, model.parameters() if protect else (), outline, flow)
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(_no_cached_casts())
            stack.enter_context(FunctionWatch(ctx))
            stack.enter_context(mode)
            output = model(*args, **kwargs)
    except Exception as error:
        error._channelwise_module = tracker.deepest  # type: ignore[attr-defined]
        raise
    finally:
        tracker.remove()
    outputs = tensors_in(output, attributes=True)
    ctx.use(outputs)
    for tensor in outputs if freeze else ():
        for m in ctx.maps(tensor):
            trace.space.freeze(m.labels, Reason("output", "", "an output of the network", Cause.OUTPUT))
    if flow is not None:
        for copy in written_into(mode.copies, flow, outputs):
            for copied in copy.maps:
                trace.space.keep_two(copied, copy.reason)
    if flow is not None and record:
        modules = dict(model.named_modules())
        trace.macs = ctx.macs
        trace.dead_ends = dead_ends(flow, ctx.macs, outputs)
        trace.candidates = [c for c in candidates(model, ctx.runs) if _mentioned(c, modules)]
        known = {(c.cls, c.attribute) for c in trace.candidates}
        lengths = candidates(model, [(module, (run,)) for module, run in ctx.read if run.size > 1])
        trace.compared = [c for c in lengths if (c.cls, c.attribute) not in known and _mentioned(c, modules)]
        trace.same_widths = same_widths(ctx.read, ctx.given)
        trace.elsewhere = candidates_elsewhere(model, [*ctx.adapting_runs, *ctx.runs])
    ctx.touched = {id(t) for t in stored.values()} & ctx.touched
    return ctx, output_values(output)


def _mentioned(candidate: Candidate, modules: Mapping[str, nn.Module]) -> bool:
    """Whether the code that ran may read this number: that of its own module, or that of the module above."""
    readers = (modules[candidate.module], modules[candidate.seen])
    name = attribute_of(candidate.attribute)
    return any("forward" in m.__dict__ or name in names_reached(type(m), "forward") for m in readers)


def _train_pass(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], trace: Trace, shared: bool
) -> TraceContext | None:
    """Follow the training path: first with outlined values, then for real, last with the batch doubled if it is 1.

    None if it does not run.
    """
    space = trace.space
    records: tuple[list[Any], ...] = (
        space.pairs, space.inexact, space.parts, space.two_stay, space.questions, space.roles,
        trace.counted, trace.uncounted,
    )  # fmt: skip
    marks = [len(r) for r in records]
    attempts: list[tuple[Any, Any, bool]] = [(args, kwargs, True), (args, kwargs, False)]
    if trace.batch == 1:
        attempts.insert(1, (doubled(list(args)), doubled(dict(kwargs)), True))
    error = ""
    for some_args, some_kwargs, outline in attempts:
        try:
            ctx, _ = run_labelled(model, some_args, some_kwargs, trace, record=False, protect=shared, outline=outline)
            trace.trains, trace.trains_randomly = True, ctx.random
            return ctx
        except Exception as failure:
            # Whatever the user's training path raises, it is skipped and said so.
            error = error or f"{type(failure).__name__}: {failure}"
            for recorded, length in zip(records, marks, strict=True):
                del recorded[length:]
    trace.notes.append(f"the training path was skipped, as it does not run on the inputs alone: {error}")
    logger.info("%s", trace.notes[-1])
    return None


def _done_with_channels(trace: Trace, ctx: TraceContext) -> Counter[tuple[str, str]]:
    """How often a run did which operation in which module to channels that may be removed."""
    channel = trace.space.components()
    stays = np.zeros(int(channel.max(initial=0)) + 1, bool)
    stays[channel[list(trace.space.reasons)]] = True
    return Counter((operation, module) for operation, module, labels in ctx.done if not stays[channel[[*labels]]].all())


def trace_passes(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], *, shared: bool) -> Trace:
    """Trace in eval and in train mode, on a private copy whose buffers and flags may change.

    ``shared``: its parameters are the user's own; WritesParameters is raised before anything is written into them.
    """
    space = LabelSpace()
    tensors, aliases = label_tensors(model, space)
    trace = Trace(space, tensors, aliases, types={name: type(module) for name, module in model.named_modules()})
    trace.batch = max(number_of_samples(args, kwargs), 1)
    stored = named_tensors(model)
    ask_where_widths_are_read(model, trace)
    model.eval()
    marks = [len(space.questions)]
    evaluated, _ = run_labelled(model, args, kwargs, trace, record=True, protect=shared)
    space.condense()
    touched = set(evaluated.touched)
    marks.append(len(space.questions))
    model.train()
    trained = _train_pass(model, args, kwargs, trace, shared)
    space.condense()
    in_training = set() if trained is None else trained.touched
    model.eval()
    places = [(q.reason.operation, q.reason.module) for q in space.questions]
    # Parameters only: batch norm counts batches in a buffer that nothing else reads.
    new = (in_training - touched) & {id(p) for p in model.parameters()}
    trace.trains_differently = bool(new) or not set(places[marks[1] :]) <= set(places[marks[0] : marks[1]])
    if trained is not None:
        trace.computes_differently = _done_with_channels(trace, trained) != _done_with_channels(trace, evaluated)
    touched |= in_training
    unused = Reason("unused", "", "never used while the model ran on the example inputs", Cause.UNUSED)
    for name, labels in tensors.items():
        if id(stored[name]) not in touched:
            for axis in labels.axes:
                if axis is not None:
                    space.freeze(axis, unused)
    return trace
