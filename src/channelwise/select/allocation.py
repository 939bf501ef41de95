"""From importance scores to the number of channels every group keeps: the least importance lost per MAC saved."""

from __future__ import annotations

import heapq
from collections.abc import Mapping

import numpy as np

from channelwise.cost import cost_model
from channelwise.errors import InvalidArgumentError
from channelwise.select.budget import Words, check_reachable, check_share, full_cost, settle
from channelwise.select.widths import Widths, allowed_widths, part_count
from channelwise.structure import Group, Structure

# The share of the cost after which prices are worked out again: a channel costs less when its neighbours are narrower.
REFRESH = 0.002


def global_counts(
    structure: Structure,
    scores: Mapping[str, np.ndarray],
    target: float,
    cost: str = "macs",
    widths: Widths | None = None,
    comparable: bool = False,
    *,
    dead: Mapping[str, np.ndarray] | None = None,
    words: Words | None = None,
) -> dict[str, int]:
    """Kept counts for a budget, from one order of all channels by importance per cost.

    One group after the other loses a few channels, always the group that loses the least importance for the cost saved
    at the widths reached so far, until the budget is met. The result says how many channels a group keeps; `choose`
    says which, by the same scores.

    Arguments:
        scores: one score a channel, larger = more important, shape (group size,), for every group with a choice.
        target: share of the full model's cost to keep, in (0, 1].
        cost: "macs" or "params".
        widths: the counts allowed, from ``allowed_widths``; default: any.
        comparable: whether scores of different groups have one scale, as gradient rankings have. If not, a channel
            counts as the share of the squared scores that its group loses with it, of those still there (LAMP, Lee et
            al. 2021, arXiv:2010.07611), once for every layer that reads the group.
        dead: masks of channels that an earlier pruning removed, from ``dead_channels``; they have no importance.

    Raises UnreachableTargetError with the reachable range, InvalidArgumentError and NothingToPruneError.
    """
    check_share(cost, target)
    widths = widths or allowed_widths(structure)
    check_reachable(structure, target, cost, widths)
    worth = [
        _worth(group, scores, None if dead is None else dead.get(group.name), comparable) if free else np.zeros(0)
        for group, free in zip(structure.groups, widths.free.tolist(), strict=True)
    ]
    counts = _descend(structure, worth, target, cost, widths)
    return settle(structure, counts, target, cost, widths, exact=False, words=words)


def _worth(group: Group, scores: Mapping[str, np.ndarray], dead: np.ndarray | None, comparable: bool) -> np.ndarray:
    """The importance that a group keeps with its best 0, 1, … size channels per part: (size / parts + 1,)."""
    if group.name not in scores:
        raise InvalidArgumentError(f"No scores are given for the group {group.name!r}.")
    values = np.asarray(scores[group.name], float)
    if values.shape != (group.size,) or not np.isfinite(values).all():
        raise InvalidArgumentError(
            f"The group {group.name!r} needs {group.size} finite scores, one a channel, not shape {values.shape}."
        )
    floor = min(float(values.min()), 0.0)
    if dead is not None:
        values = np.where(dead, floor, values)
    ranked = np.sum([np.sort(values[part])[::-1] for part in group.members], axis=0)
    if not comparable:
        energy = (ranked - floor * part_count(group)) ** 2
        readers = sum(slots.role == "input" for slots in group.slots)
        ranked = max(readers, 1) * energy / np.maximum(np.cumsum(energy), np.finfo(float).tiny)
    return np.concatenate([[0.0], np.cumsum(ranked)])


def _descend(structure: Structure, worth: list[np.ndarray], target: float, cost: str, widths: Widths) -> np.ndarray:
    """From the widest counts down to the target, always by the step that loses least for what it saves."""
    evaluate, full = cost_model(structure).cost(cost), full_cost(structure, cost)
    parts = np.asarray([part_count(g) for g in structure.groups])
    counts = widths.high.copy()
    reached = float(evaluate(counts))
    while reached > target * full:
        below = widths.below(counts)
        moving = np.flatnonzero(below < counts)
        trial = np.repeat(counts[None], len(moving), axis=0)
        trial[np.arange(len(moving)), moving] = below[moving]
        # The price of one channel of a group, at the widths that all groups have now.
        price = np.zeros(len(counts))
        price[moving] = (reached - evaluate(trial)) / (counts[moving] - below[moving])
        steps = [(_loss(worth[g], counts[g], below[g], parts[g], price[g]), int(g)) for g in moving if price[g] > 0]
        if not steps:
            break
        heapq.heapify(steps)
        # Never further than half of what is left, so that the last steps are taken at the right prices.
        quota = min(REFRESH * full, (reached - target * full) / 2)
        saved = 0.0
        while steps and saved <= quota:
            _, g = heapq.heappop(steps)
            saved += price[g] * (counts[g] - below[g])
            counts[g] = below[g]
            below[g] = widths.below(counts)[g]
            if below[g] < counts[g]:
                heapq.heappush(steps, (_loss(worth[g], counts[g], below[g], parts[g], price[g]), g))
        reached = float(evaluate(counts))
    return counts


def _loss(worth: np.ndarray, above: int, below: int, parts: int, price: float) -> float:
    """Importance lost per cost saved, from ``above`` channels to ``below``."""
    return float(worth[above // parts] - worth[below // parts]) / (price * (above - below))
