"""Runs the oracle on a small network and checks what the registry expects of it."""

from __future__ import annotations

from collections import Counter

from channelwise import ChannelGraph
from channelwise.report.inspection import frozen_outputs
from channelwise.structure import Cause, owner
from channelwise.testing import OracleReport, check_oracle, prunable_outputs
from tests.networks import Network


def check_network(network: Network, **options: object) -> OracleReport:
    """The oracle, and then: all that can be pruned is prunable, all that must stay stays, inexact groups say so."""
    model = network.model()
    kwargs = network.kwargs() if network.kwargs else None
    report = check_oracle(model, network.inputs(), kwargs=kwargs, telling=network.telling, **options)  # type: ignore[arg-type]
    assert not report.raised, report.raised
    assert not any("eval mode" in what for what in report.uncompared), report.uncompared
    structure, table = report.graph.structure, f"\n{report.graph}"
    told: Counter[str] = Counter()
    for row in frozen_outputs(structure):
        told.update(row.layers)
    for name, mask in prunable_outputs(model, structure).items():
        untold = (~mask).sum() - told[name]
        assert untold <= 0 or mask.size == 1, f"{untold} channels of {name} stay without a word{table}"
        if name in network.kept:
            assert not mask.any(), (
                f"{mask.sum()} of {mask.size} channels of {name} may be removed: they must stay{table}"
            )
        else:
            wanted = network.partly.get(name, mask.size)
            assert mask.sum() == wanted, f"{mask.sum()} of {mask.size} channels of {name}, not {wanted}, can go{table}"
    for group in structure.groups:
        found = "exact" if group.exact else "inexact" if group.slim_only else "counted"
        if set(group.layers) & set(network.counted):
            expected = "counted"
        elif set(group.layers) & set(network.inexact):
            expected = "inexact"
        else:
            expected = "exact"
        assert found == expected, f"{group.name} is {found}, not {expected} ({group.inexact_because}){table}"
    ours, theirs = report.slim.state_dict(), model.state_dict()
    for name in network.smaller:
        assert ours[name].numel() < theirs[name].numel(), f"{name} did not get smaller{table}"
    for layer, reason in network.because.items():
        assert reason in why(report.graph, layer), f"{layer} stays because of {why(report.graph, layer)}"
    if network.trains:
        assert report.trained, "the network did not run a training step"
    return report


def why(graph: ChannelGraph, layer: str) -> set[tuple[Cause, str]]:
    """Causes for which output channels of a layer must stay, and the modules that they lie in."""
    frozen = [f for f in graph.frozen if f.role == "output" and owner(f.tensor) == layer]
    return {(reason.cause, reason.module) for f in frozen for reason in f.reasons}
