"""Does the user's code adapt to fewer channels? Programs of slim models are compared; what does not adapt stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from channelwise.inputs.example import varied
from channelwise.selection import Selection
from channelwise.structure import Structure
from channelwise.surgery.slim import slim_model
from channelwise.tracing.recording import Trace
from channelwise.verify.elsewhere import follow_elsewhere
from channelwise.verify.macs import slim_macs_differ
from channelwise.verify.questions import asked_of
from channelwise.verify.selections import Pattern, kept_channels
from channelwise.verify.trial import Trials
from channelwise.verify.tripwire import guarded
from channelwise.verify.verifier import Verifier
from channelwise.verify.weights import with_sliced_weights

__all__ = ["verified"]


def verified(
    trace: Trace, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], *, shared: bool
) -> Structure:
    """The structure of a trace in which everything that may be pruned is known to adapt.

    Arguments:
        model: the user's own; it is not changed.
        args, kwargs: the example inputs.
        shared: models that are tried may share the parameters that they do not lose with ``model``.
    """
    trials = Trials(trace, model, shared)
    solution, bans = Verifier(trace, trials).run()
    wrong = slim_macs_differ(solution.structure, trials.counted, trace.batch)
    if wrong:
        trace.notes += wrong
        solution = replace(solution, structure=replace(solution.structure, notes=tuple(trace.notes)))
    solution, bans = with_sliced_weights(trace, solution, bans, model)
    asked = asked_of(trace, solution)
    if asked:
        solution = guarded(trace, solution, bans, asked, model, shared, args, kwargs)
    if trace.elsewhere:

        def slim(structure: Structure) -> nn.Module:
            everything = Selection(kept_channels(structure, structure.full(), Pattern.UPPER))
            return slim_model(model, structure, everything, share_untouched=shared)

        solution = follow_elsewhere(trace, solution, bans, slim, varied(args), varied(kwargs))
    return solution.structure
