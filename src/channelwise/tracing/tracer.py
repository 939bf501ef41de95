"""Run a model with labels flowing along, once in eval and once in train mode."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from channelwise.inputs.example import doubled, number_of_samples
from channelwise.inputs.tree import cannot_be_looked_into, tensors_in
from channelwise.structure import Cause, Reason
from channelwise.tensors import named_tensors
from channelwise.tracing.code.other_ways import candidates_elsewhere
from channelwise.tracing.code.watch import FunctionWatch, ask_where_widths_are_read
from channelwise.tracing.context import TraceContext
from channelwise.tracing.dispatch import LabelMode
from channelwise.tracing.labels import LabelSpace
from channelwise.tracing.macs import Macs
from channelwise.tracing.memory.copies import written_into
from channelwise.tracing.memory.flow import Flow
from channelwise.tracing.modules import ModuleTracker
from channelwise.tracing.normed import normed_weights
from channelwise.tracing.provenance import trace_numbers
from channelwise.tracing.recording import Pass, Trace, label_tensors

logger = logging.getLogger(__name__)


@contextmanager
def undisturbed_randomness(device_tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """Restore the state of the random number generators of torch, NumPy and Python afterwards."""
    devices = sorted({t.device.index or 0 for t in device_tensors if t.device.type == "cuda"})
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


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
    one: Pass,
    trace: Trace,
    *,
    flow: Flow | None = None,
    macs: Macs | None = None,
    record: bool = False,
    protect: bool = False,
) -> tuple[TraceContext, LabelMode, list[torch.Tensor]]:
    """One forward pass with labels, noted in the program of ``one``; returns also the tensors that it gave.

    ``model`` is a private copy. ``flow`` notes what is read and written, ``macs`` counts products, ``record`` keeps the
    shapes that modules see. ``protect``: WritesParameters is raised before anything is written into parameters. An
    exception leaves with the name of the running module attached.
    """
    ctx = TraceContext(trace.space, uses=trace.uses)
    stored = named_tensors(model)
    for name, labels in trace.tensors.items():
        ctx.set(stored[name], labels.maps(), True)
    for tensor in tensors_in(list(one.args)) + tensors_in(dict(one.kwargs)):
        ctx.set(tensor, ())
    tracker = ModuleTracker(model.train(one.train), ctx, trace, record)
    protected = model.parameters() if protect else ()
    mode = LabelMode(ctx, one.decisions, one.program, outlined=one.outlined, flow=flow, macs=macs, protected=protected)
    # Every run draws the same numbers, so that it takes the same way.
    random.seed(0)
    np.random.seed(0)
    try:
        with ExitStack() as stack:
            for context in (torch.no_grad(), _no_cached_casts(), FunctionWatch(ctx), mode):
                stack.enter_context(context)
            output = model(*one.args, **one.kwargs)
    except Exception as error:
        error._channelwise_module = tracker.deepest  # type: ignore[attr-defined]
        raise
    finally:
        tracker.remove()
    outputs = tensors_in(output, attributes=True)
    ctx.use(outputs)
    one.program.add_outputs(ctx, outputs)
    ctx.touched = {id(t) for t in stored.values()} & ctx.touched
    closed = cannot_be_looked_into(output)
    if closed is not None or not any(map(ctx.knows, outputs)):
        ctx.unseen = ctx.left_alive()
        kind = closed or type(output).__name__
        note = f"the model returns what cannot be looked into ({kind}): all that it leaves in memory stays"
        trace.notes += [] if note in trace.notes else [note]
    return ctx, mode, outputs


def _traced_pass(
    model: nn.Module, one: Pass, trace: Trace, *, macs: Macs | None = None, record: bool = False, protect: bool = False
) -> TraceContext:
    """A pass of the full model: what it returns stays, and copies that must not become views keep two channels."""
    flow = Flow()
    ctx, mode, outputs = run_labelled(model, one, trace, flow=flow, macs=macs, record=record, protect=protect)
    for m in [*ctx.unseen, *(m for tensor in outputs for m in ctx.maps(tensor))]:
        trace.space.freeze(m.labels, Reason("output", "", "an output of the network", Cause.OUTPUT))
    for copy in written_into(mode.copies, flow, outputs):
        for copied in copy.maps:
            trace.space.keep_two(copied, copy.reason)
    trace.passes.append(one)
    return ctx


def _train_pass(model: nn.Module, first: Pass, trace: Trace, shared: bool) -> TraceContext | None:
    """Follow the training path: first with outlined values, then for real, last with the batch doubled if it is 1.

    None if it does not run.
    """
    space = trace.space
    records: tuple[list[Any], ...] = (
        space.pairs, space.inexact, space.parts, space.two_stay, space.questions, space.roles,
        trace.counted, trace.uncounted,
    )  # fmt: skip
    marks = [len(r) for r in records]
    attempts: list[tuple[Any, Any, bool]] = [(first.args, first.kwargs, True), (first.args, first.kwargs, False)]
    if trace.batch == 1:
        attempts.insert(1, (doubled(list(first.args)), doubled(dict(first.kwargs)), True))
    error = ""
    for args, kwargs, outlined in attempts:
        try:
            return _traced_pass(model, Pass(True, args, kwargs, outlined), trace, protect=shared)
        except Exception as failure:
            # Whatever the user's training path raises, it is skipped and said so.
            error = error or f"{type(failure).__name__}: {failure}"
            for recorded, length in zip(records, marks, strict=True):
                del recorded[length:]
    trace.notes.append(f"the training path was skipped, as it does not run on the inputs alone: {error}")
    logger.info("%s", trace.notes[-1])
    return None


def trace_passes(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], *, shared: bool, original: nn.Module | None = None
) -> Trace:
    """Trace in eval and in train mode, on a private copy whose numbers, buffers and flags may change.

    ``shared``: its parameters are the user's own; WritesParameters is raised before anything is written into them.
    ``original`` is the user's model; without it numbers do not remember where they come from.
    """
    space = LabelSpace()
    normed = normed_weights(model)
    tensors, aliases = label_tensors(model, space, normed)
    trace = Trace(space, tensors, aliases, types={name: type(module) for name, module in model.named_modules()})
    trace.normed = normed
    trace.batch = max(number_of_samples(args, kwargs), 1)
    stored = named_tensors(model)
    ask_where_widths_are_read(model, space, {name: labels.axes for name, labels in tensors.items()})
    trace.remembers = original is not None
    if original is not None:
        trace_numbers(model, trace.uses, original)
    first = Pass(False, args, kwargs, False)
    macs = Macs()
    evaluated = _traced_pass(model, first, trace, macs=macs, record=True, protect=shared)
    trace.macs = macs.records
    if (difference := macs.difference(trace.batch)) is not None:
        trace.notes.append(difference)
    trace.elsewhere = candidates_elsewhere(model, evaluated.runs)
    space.condense()
    trained = _train_pass(model, first, trace, shared)
    space.condense()
    model.eval()
    touched = evaluated.touched | (set() if trained is None else trained.touched)
    unused = Reason("unused", "", "never used while the model ran on the example inputs", Cause.UNUSED)
    for name, labels in tensors.items():
        if id(stored[name]) not in touched:
            for axis in labels.axes:
                if axis is not None:
                    space.freeze(axis, unused)
    return trace
