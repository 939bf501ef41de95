"""The oracle: on any model, removing channels must equal zeroing them, and every number about it must be true."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from channelwise.api import ChannelGraph, trace
from channelwise.inputs.example import as_arguments, cast
from channelwise.selection import Selection
from channelwise.surgery import clone_module
from channelwise.testing.modules import check_modules, prunable_share, randomise, settle_statistics
from channelwise.testing.outputs import Comparison, two_samples
from channelwise.testing.selections import only, random_selection, unbalanced_selection
from channelwise.testing.slim import check_costs, check_sizes, check_state_dicts, check_training
from channelwise.testing.values import digest


@dataclass(frozen=True)
class OracleReport:
    """What `check_oracle` found: shares are fractions, MACs are for one sample, ``error`` and ``changed`` are relative.

    ``raised``: comparisons for which the tolerance was raised, as rounding changes more. ``granted``: numbers that
    code makes of sizes, taken from the slim model. ``uncompared``: groups and modes of which outputs could not be
    compared, and why.
    """

    graph: ChannelGraph
    selection: Selection
    slim: nn.Module
    prunable: float
    macs: tuple[float, float]
    params: tuple[int, int]
    error: float
    changed: float
    compared_in_training: bool
    trained: bool
    raised: tuple[str, ...]
    granted: tuple[str, ...]
    uncompared: tuple[str, ...]
    notes: tuple[str, ...]


def check_oracle(
    model: nn.Module,
    inputs: Any,
    *,
    kwargs: Mapping[str, Any] | None = None,
    share: float = 0.5,
    seed: int = 0,
    select: Callable[[ChannelGraph], Selection] | None = None,
    dtype: torch.dtype | None = torch.float64,
    min_pruned: float | None = None,
    count: bool = True,
    telling: bool = True,
    allow_rounding: bool = True,
) -> OracleReport:
    """Trace ``model``, keep a random ``share`` of every group, and check the slim model in every way known.

    Arguments:
        model: never changed; a copy is cast to ``dtype`` and its constant parameters and statistics are randomised,
            so that no zero-initialised scale hides a wrong path.
        inputs: what ``channelwise.trace`` takes; floating point tensors are cast to ``dtype``.
        share: kept fraction of every channel group, in (0, 1).
        select: makes the selection to check, in place of a random ``share``.
        dtype: ``torch.float64`` (outputs agree to 1e-8 relative), ``torch.float32`` (1e-5), or None: as it is.
        count: compare MACs with the flop counter, and the first axes of the outputs; not for a model whose work
            depends on what it sees, such as a detector that looks at more boxes the more it finds.
        telling: demand outputs that are finite and change with the pruning: others say nothing about it.
        allow_rounding: a network that makes more of rounding than the tolerance may differ as much as inputs with such
            noise make it; the report says so.
        min_pruned: the least share of the output channels of convolution and linear modules that must be prunable.

    Returns:
        An `OracleReport`, with the graph, the selection and the slim model for further checks.

    Raises:
        AssertionError: saying what disagrees, and which channel groups cause it when pruned alone.
    """
    model = clone_module(model, {})
    if dtype is not None:
        model.to(dtype)
    randomise(model, seed)
    args, named = as_arguments(inputs, kwargs)
    args, named = cast(args, dtype), cast(named, dtype)
    two = two_samples(args, named)
    settle_statistics(model, *two, seed)
    before = {name: digest(tensor) for name, tensor in model.state_dict().items()}

    graph = trace(model, args, kwargs=named)
    selection = select(graph) if select else random_selection(graph, share, seed)
    uneven = unbalanced_selection(graph, seed)
    comparison = Comparison(model, graph, args, named, allow_rounding=allow_rounding)
    changed = comparison.check_outputs(selection, first_axes=count, telling=telling)
    for one in (selection, uneven):
        comparison.in_eval_mode(one)
    if dtype == torch.float64:
        in_training = comparison.in_train_mode(selection) and comparison.in_train_mode(uneven)
    else:
        in_training = comparison.pass_over("train mode: compared in double precision only")
    comparable = only(graph.structure, selection, {group.name for group in graph.groups if not group.slim_only})
    check_state_dicts(model, graph, comparable)
    slim = graph.slim(selection)
    check_modules(model, slim)
    check_sizes(graph, slim, selection)
    for one in (selection,) if comparable == selection else (selection, comparable):
        check_costs(graph, one, args, named, macs=count)
    trained = check_training(model, slim, *two)
    for name, tensor in model.state_dict().items():
        assert digest(tensor) == before[name], f"tracing or pruning changed {name} of the user's model"

    prunable = prunable_share(model, graph.structure)
    if min_pruned is not None:
        assert prunable >= min_pruned, (
            f"only {prunable:.1%} of the output channels of convolutions and linear layers can be pruned, "
            f"expected {min_pruned:.1%}\n{graph}"
        )
    return OracleReport(
        graph=graph,
        selection=selection,
        slim=slim,
        prunable=prunable,
        macs=(graph.macs(), graph.macs(selection)),
        params=(graph.params(), graph.params(selection)),
        error=comparison.error,
        changed=changed,
        compared_in_training=in_training,
        trained=trained,
        raised=tuple(comparison.raised),
        granted=tuple(dict.fromkeys(comparison.granted)),
        uncompared=tuple(dict.fromkeys(comparison.uncompared)),
        notes=tuple(graph.structure.notes),
    )
