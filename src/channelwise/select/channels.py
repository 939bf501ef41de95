"""From a budget or sparsities to a selection: which channels every group keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from channelwise.errors import SAYS_WHY, InvalidArgumentError, NothingToPruneError
from channelwise.ranking import Criterion, Weights, bind, comparable, get, scores
from channelwise.select.allocation import global_counts
from channelwise.select.budget import check_share, counts_for_sparsity, solve_budget
from channelwise.select.excludes import match_excludes
from channelwise.select.naming import by_group
from channelwise.select.widths import allowed_widths, part_count, sparsities
from channelwise.selection import Selection
from channelwise.structure import Group, Structure, network_of, unknown_group


def select(
    structure: Structure,
    tensors: Mapping[str, torch.Tensor],
    *,
    macs: float | None = None,
    params: float | None = None,
    sparsity: float | Mapping[Any, float] | None = None,
    ranking: str | Criterion = "l1",
    channel_divisible: int = 1,
    min_channels: int = 1,
    excludes: Any = (),
    limits: float | Mapping[Any, float] | None = None,
    allocation: Literal["uniform", "global"] = "uniform",
    model: nn.Module | None = None,
) -> Selection:
    """Choose the channels to keep.

    Arguments:
        tensors: parameters and buffers by name.
        macs, params: share of the full model's MACs or parameters to keep, in (0, 1]; the nearest selection is found.
        sparsity: fraction of channels to remove, in [0, 1), for all groups or by group (others stay full). By group
            together with ``macs`` or ``params``: the proportions in which the groups are pruned to reach the budget.
            Keys are what ``excludes`` takes, also names of layers, patterns, modules and types; the own name of a
            group goes before others that mean it.
        ranking: a registered criterion or a callable (group, tensors) -> one score a channel, larger = more important.
        channel_divisible: every group keeps a multiple of this many output slots, or all; narrower groups stay full.
        min_channels: no group keeps fewer channels; narrower groups stay full.
        excludes: groups that stay full, see ``match_excludes``; modules and types need ``model``.
        limits: the largest sparsity of a group, in [0, 1], for all or by group, with keys as in ``sparsity``.
        allocation: how a budget of ``macs`` or ``params`` is shared out. "uniform": equal sparsities, or those of
            ``sparsity`` in proportion. "global": all channels in one order of importance per cost, see
            ``channelwise.select.allocation.global_counts``.
        model: what rankings by gradients and modules as excludes or keys look at.

    Channels removed by an earlier pruning go first, and no group keeps more than it has others. Shares refer to the
    full model all the same. Where scores are equal, the first channels stay.
    Raises InvalidArgumentError, UnreachableTargetError (with the reachable range), NothingToPruneError.
    """
    budget = _one_target(macs, params, sparsity)
    _check_allocation(allocation, budget, sparsity)
    get(ranking)
    sparsity = by_group(structure, sparsity, "sparsity", model)
    limits = by_group(structure, limits, "limits", model)
    full = match_excludes(structure, excludes, model)
    if sparsity is not None:
        removes = bool(sparsities(structure, sparsity).any()) or (not isinstance(sparsity, Mapping) and sparsity > 0)
    else:
        removes = any(share is not None and share < 1 for share in (macs, params))
    if removes and all(g.name in full for g in structure.groups):
        raise NothingToPruneError(
            "No channel group is left to prune: all are excluded." if structure.groups else
            f"The model has no channel group to prune; {SAYS_WHY}."
        )  # fmt: skip
    weights = Weights.of(tensors, structure)
    dead = dead_channels(structure, weights)
    widths = allowed_widths(
        structure, channel_divisible=channel_divisible, min_channels=min_channels, full=full, limits=limits, dead=dead
    )
    criterion = bind(ranking, model, structure)
    if budget is None:
        counts = counts_for_sparsity(structure, sparsity or 0.0, widths=widths)
    elif allocation == "global":
        values = {
            g.name: scores(criterion, g, weights) for g, free in zip(structure.groups, widths.free, strict=True) if free
        }
        counts = global_counts(structure, values, budget[1], budget[0], widths, comparable(criterion), dead=dead)
    else:
        profile = sparsity if isinstance(sparsity, Mapping) else None
        counts = solve_budget(structure, budget[1], budget[0], profile=profile, widths=widths)
    return choose(structure, weights, counts, criterion, dead=dead).check(structure)


def choose(
    structure: Structure,
    tensors: Mapping[str, torch.Tensor],
    counts: Mapping[str, int],
    ranking: str | Criterion = "l1",
    *,
    dead: Mapping[str, np.ndarray] | None = None,
) -> Selection:
    """The best channels of every group, given how many. Every part of a group chooses its own.

    Channels that an earlier pruning removed (``dead``, found if not given) are the last choice. Where scores are equal,
    the first channels stay. Groups missing from ``counts`` stay full. A ranking that needs the model must be bound, see
    ``channelwise.ranking.bind``.
    """
    weights = Weights.of(tensors, structure)
    dead = dead_channels(structure, weights) if dead is None else dead
    known = {g.name for g in structure.groups}
    for name in counts:
        if name not in known:
            raise InvalidArgumentError(unknown_group(structure, name, "counts"))
    kept = {}
    for group in structure.groups:
        count = counts.get(group.name, group.size)
        if not 1 <= count <= group.size or count % part_count(group):
            parts = part_count(group)
            raise InvalidArgumentError(
                f"The group {group.name!r} of {group.size} channels cannot keep {count}"
                + (f": its {parts} parts must keep equally many." if parts > 1 else ".")
            )
        if count == group.size:
            kept[group.name] = np.arange(group.size)
        else:
            kept[group.name] = _best(group, scores(ranking, group, weights), count, dead[group.name])
    return Selection(kept, network_of(structure))


def dead_channels(structure: Structure, tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Masks of the channels whose parameters are all exactly 0: an earlier sparse pruning removed them.

    Pruning leaves channels in every group and part. So a group or part that is 0 altogether was not pruned (a layer
    that starts at 0, say) and counts as alive.
    """
    weights = Weights.of(tensors, structure)
    return {group.name: _dead(group, weights) for group in structure.groups}


def _dead(group: Group, weights: Weights) -> np.ndarray:
    parameters = [s for s in group.slots if weights.info(s.tensor).is_parameter]
    dead = np.full(group.size, bool(parameters))
    # Small tensors settle the matter for most models before a large one has to be read.
    for slots in sorted(parameters, key=lambda s: weights[s.tensor].numel()):
        if not dead.any():
            break
        dead &= weights.zero_slots(slots.tensor, slots.axis)[slots.index].all(axis=1)
    if any(dead[part].all() for part in group.members):
        dead[:] = False
    return dead


def _best(group: Group, values: np.ndarray, count: int, dead: np.ndarray) -> np.ndarray:
    values = np.where(dead, -np.inf, values)
    each = count // part_count(group)
    return np.sort(np.concatenate([part[np.argsort(-values[part], kind="stable")[:each]] for part in group.members]))


def _one_target(macs: Any, params: Any, sparsity: Any) -> tuple[str, float] | None:
    """The budget asked for, or None for plain sparsities; InvalidArgumentError unless there is exactly one target."""
    given = {name: value for name, value in (("macs", macs), ("params", params)) if value is not None}
    if len(given) == 2 or (given and sparsity is not None and not isinstance(sparsity, Mapping)):
        both = [*given, *(["sparsity"] if sparsity is not None else [])]
        raise InvalidArgumentError(f"Give one of macs, params and sparsity, not {' and '.join(both)} together.")
    if not given and sparsity is None:
        raise InvalidArgumentError(
            "Give a target: macs=0.5 or params=0.5 (share kept), or sparsity=0.5 (share removed)."
        )
    for name, value in given.items():
        check_share(name, value)
        return name, float(value)
    return None


def _check_allocation(allocation: Any, budget: tuple[str, float] | None, sparsity: Any) -> None:
    if allocation not in ("uniform", "global"):
        raise InvalidArgumentError(f"allocation must be 'uniform' or 'global', not {allocation!r}.")
    if allocation == "uniform":
        return
    if budget is None:
        raise InvalidArgumentError("allocation='global' shares out a budget: give macs= or params=, not sparsity=.")
    if sparsity is not None:
        raise InvalidArgumentError(
            "Give allocation='global' or the proportions sparsity={...}, not both; limits={...} bounds single groups."
        )
