"""From a share of MACs or parameters to the number of channels every group keeps."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from channelwise.cost import cost_model
from channelwise.errors import SAYS_WHY, InvalidArgumentError, NothingToPruneError, UnreachableTargetError
from channelwise.select.nearest import nearest_counts
from channelwise.select.widths import Widths, allowed_widths, is_number, sparsities
from channelwise.structure import Structure

logger = logging.getLogger(__name__)

Profile = Callable[[float], "float | Mapping[str, float] | np.ndarray"]
"""From a severity in [0, 1] to sparsities that do not fall as it grows: one, by group name, or in order of groups."""

Words = Callable[[Mapping[str, float]], str]
"""What the user calls shares to keep, by cost."""

# A target may lie outside the reachable range by this share of itself and still get the end of the range: results
# are promised within 1 %, and a model pruned earlier starts slightly off its own target.
TOLERANCE = 0.01
# Near enough, as a share of the target, not to look further away from equal sparsities.
NEAR = 0.001


def reachable(structure: Structure, cost: str = "macs", *, widths: Widths | None = None) -> tuple[float, float]:
    """The smallest and the largest share of the full cost that a selection can keep."""
    widths = widths or allowed_widths(structure)
    model = cost_model(structure)
    low, high, full = model.cost(cost)(np.stack([widths.low, widths.high, model.full]))
    if full == 0:
        raise InvalidArgumentError(f"The model has no {_unit(cost)} to set a target for.")
    return float(low / full), float(high / full)


def counts_for_sparsity(
    structure: Structure, spec: float | Mapping[str, float], *, widths: Widths | None = None
) -> dict[str, int]:
    """Kept counts nearest to a sparsity for all groups, or to sparsities by group (groups left out lose nothing)."""
    widths = widths or allowed_widths(structure)
    return _named(structure, widths.nearest(widths.size * (1 - sparsities(structure, spec))))


def solve_budget(
    structure: Structure,
    target: float,
    cost: str = "macs",
    *,
    profile: Mapping[str, float] | Profile | None = None,
    widths: Widths | None = None,
    words: Words | None = None,
) -> dict[str, int]:
    """Kept counts whose cost is nearest to ``target``, and not above it where two are equally near.

    Arguments:
        target: share of the full model's cost to keep, in (0, 1].
        cost: "macs" or "params".
        profile: how the groups share the burden. None: equal sparsities. A mapping: sparsities in these proportions;
            groups left out or at 0 lose nothing. A callable: from a severity in [0, 1] to sparsities; where its
            severity 1 is too little, the sparsities go on evenly to the largest allowed.
        widths: the counts allowed, from ``allowed_widths``; default: any.
        words: what messages call the target; default: `kept_shares`.

    The counts follow the profile, a family with one parameter found by bisection; then few groups move by single steps.
    Before these moves a smaller target keeps no more channels in any group.
    Raises UnreachableTargetError with the reachable range, InvalidArgumentError and NothingToPruneError.
    """
    widths = widths or allowed_widths(structure)
    check_share(cost, target)
    family, last, widths = _family(structure, profile, widths)
    check_reachable(structure, target, cost, widths)
    evaluate, full = cost_model(structure).cost(cost), full_cost(structure, cost)
    start = _follow(family, last, widths, evaluate, target * full)
    return settle(structure, start, target, cost, widths, exact=profile is None, words=words)


def check_reachable(structure: Structure, target: float, cost: str, widths: Widths) -> None:
    """Raise NothingToPruneError or UnreachableTargetError unless a selection meets the target."""
    low, high = reachable(structure, cost, widths=widths)
    full = full_cost(structure, cost)
    if target < 1 and not widths.free.any() and abs(target - high) > TOLERANCE * target:
        raise NothingToPruneError(
            "No channel group is left to prune: all are frozen, excluded or at their minimum width. "
            f"For channels that must stay {SAYS_WHY}."
        )
    if not low * (1 - TOLERANCE) <= target <= high * (1 + TOLERANCE):
        raise UnreachableTargetError(
            f"{cost}={target:g} cannot be reached: selections of this model keep {low:.4f} to {high:.4f} of its "
            f"{_unit(cost)} ({_readable(low * full)} to {_readable(high * full)} of {_readable(full)}). Ask for a "
            "share in this range, exclude fewer layers, lower channel_divisible or min_channels, or raise the limits."
        )


def full_cost(structure: Structure, cost: str) -> float:
    """The cost with nothing removed."""
    model = cost_model(structure)
    return float(model.cost(cost)(model.full))


def settle(
    structure: Structure,
    start: np.ndarray,
    target: float,
    cost: str,
    widths: Widths,
    *,
    exact: bool,
    words: Words | None = None,
) -> dict[str, int]:
    """Counts near ``start`` that meet the target: the nearest if ``exact``, else as near as the 1 % promise needs."""
    evaluate, full = cost_model(structure).cost(cost), full_cost(structure, cost)
    # A profile says what the groups can bear, so it is left only for what the 1 % promise needs.
    counts = nearest_counts(evaluate, widths, start, target * full, NEAR if exact else TOLERANCE / 2)
    got = float(evaluate(counts)) / full
    if abs(got - target) > TOLERANCE * target:
        logger.warning(
            "%s: the nearest selection keeps %.4f of the %s and removes %.4f. Groups change in steps of up to %d "
            "channels (channel_divisible and equal parts); smaller steps come closer.",
            (words or kept_shares)({cost: target}),
            got,
            _unit(cost),
            1 - got,
            int(widths.step[widths.free].max(initial=1)),
        )
    return _named(structure, counts)


def kept_shares(shares: Mapping[str, float]) -> str:
    """Shares to keep as ``graph.select`` calls them: macs=0.5."""
    return " and ".join(f"{cost}={share:g}" for cost, share in shares.items())


def check_share(name: str, value: Any) -> None:
    """Raise InvalidArgumentError unless ``value`` is a share kept, a number in (0, 1]."""
    if not is_number(value) or not 0 < value <= 1:
        raise InvalidArgumentError(
            f"{name} must be a number in (0, 1], the share of {_unit(name)} kept, not {value!r}."
        )


Family = Callable[[float], np.ndarray]


def _family(
    structure: Structure, profile: Mapping[str, float] | Profile | None, widths: Widths
) -> tuple[Family, float, Widths]:
    """Kept counts by severity, the last severity, and the widths with unmentioned groups pinned."""
    if profile is None:
        return lambda t: widths.nearest(widths.size * (1 - t)), 1.0, widths
    if callable(profile):
        shape = _checked(structure, profile)
    else:
        weights = sparsities(structure, profile, closed=True)
        if not weights.any():
            raise NothingToPruneError("All sparsities are 0, so there is nothing to scale to the budget.")
        widths = widths.pin(weights == 0)
        weights = weights / weights.max()
        shape = lambda t: t * weights  # noqa: E731
    free, end = widths, shape(1.0)

    def counts(t: float) -> np.ndarray:
        sparsity = shape(t) if t <= 1 else end + (1 - end) * (t - 1)
        return free.nearest(free.size * (1 - sparsity))

    return counts, 2.0, widths


def _checked(structure: Structure, profile: Profile) -> Callable[[float], np.ndarray]:
    def shape(t: float) -> np.ndarray:
        values = profile(t)
        if not isinstance(values, np.ndarray):
            return sparsities(structure, values, "profile", closed=True)
        if values.shape != (len(structure.groups),) or not ((values >= 0) & (values <= 1)).all():
            raise InvalidArgumentError(
                f"A profile must give {len(structure.groups)} sparsities in [0, 1], not {values!r}."
            )
        return values

    return shape


def _follow(family: Family, last: float, widths: Widths, evaluate: Callable[[Any], Any], target: float) -> np.ndarray:
    """The member of the family nearest to the target, after breaking the family's jumps into single steps."""
    above, below = family(0.0), family(last)
    if evaluate(above) <= target:
        return above
    if evaluate(below) > target:
        return below
    above, below = _bisect(family, last, widths, above, below, evaluate, target)
    # A profile with jumps (a table of sensitivities) is continued straight across the jump.
    start, gap = above, below - above
    above, below = _bisect(lambda u: widths.nearest(start + gap * u), 1.0, widths, above, below, evaluate, target)
    # Groups that are left to step within the interval step one after the other, in the order of the network.
    moving = np.flatnonzero(above != below)
    path = np.repeat(above[None], len(moving) + 1, axis=0)
    for done, group in enumerate(moving, start=1):
        path[done:, group] = below[group]
    costs = evaluate(path)
    return path[int(np.argmin(np.abs(costs - target)))]


def _bisect(
    family: Family,
    last: float,
    widths: Widths,
    above: np.ndarray,
    below: np.ndarray,
    evaluate: Callable[[Any], Any],
    target: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Narrow counts that cost more than the target and counts that do not, until no group has a count in between."""
    start, end = 0.0, last
    for _ in range(40):
        # Looks at the interval only: other targets must come to the same end of it, or counts would not be monotone.
        if (widths.below(above) <= below).all():
            break
        middle = (start + end) / 2
        counts = family(middle)
        if evaluate(counts) > target:
            start, above = middle, counts
        else:
            end, below = middle, counts
    return above, below


def _named(structure: Structure, counts: np.ndarray) -> dict[str, int]:
    return {g.name: int(n) for g, n in zip(structure.groups, counts, strict=True)}


def _unit(cost: str) -> str:
    return "MACs" if cost == "macs" else "parameters"


def _readable(number: float) -> str:
    for scale, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= scale:
            return f"{number / scale:.3f} {letter}"
    return f"{number:.0f}"
