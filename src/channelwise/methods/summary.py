"""What a method reports of the model it made."""

from __future__ import annotations

from channelwise.api import ChannelGraph
from channelwise.report import Summary
from channelwise.search import Trial
from channelwise.selection import Selection


def summary_of(graph: ChannelGraph, selection: Selection, trial: Trial | None = None) -> Summary:
    """Costs before and after, and the score that ``trial`` had in a search."""
    return Summary(
        model=type(graph.model).__name__,
        macs_before=float(graph.macs()),
        macs_after=float(graph.macs(selection)),
        params_before=int(graph.params()),
        params_after=int(graph.params(selection)),
        score=trial.score if trial is not None else None,
        candidate=trial.number if trial is not None else None,
    )
