"""What the numbers of the user's code mean for channels: which runs go together, and which numbers follow them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from channelwise.structure import Size
from channelwise.tracing.provenance import Origin, Place, Terms, Traced, Use
from channelwise.tracing.recording import Trace

Join = tuple[np.ndarray, np.ndarray]
"""Two runs of labels (n,) for which the code uses one number: they go together, index by index."""

Sizes = Callable[[np.ndarray], Size]
"""How many labels of a run are kept."""


@dataclass(frozen=True, eq=False)
class Followed:
    """A number, wherever modules keep it, and how large it has to be."""

    places: tuple[Place, ...]
    size: Callable[[Sizes], Size]
    origin: Origin | None = None


def joins(trace: Trace) -> Iterator[Join]:
    """Runs for which one number was used: of attributes, or a size that was read and what was laid out by it."""
    first: dict[object, np.ndarray] = {}
    for use in _different(trace.uses):
        counted = use.number.origin.read if use.number.origin is not None else None
        known = first.setdefault(_sum(use.number), use.labels) if counted is None else counted
        if use.number.exact and known is not use.labels:
            yield known, use.labels


def used_numbers(trace: Trace) -> list[Followed]:
    """The numbers of attributes that the code used for labels, those first that were used alone."""
    found: dict[Origin, Followed] = {}
    for origin, use in _solved(trace):
        if origin not in found:
            found[origin] = Followed(tuple(origin.places), _solver(origin, use, found), origin)
    return list(found.values())


def _solved(trace: Trace) -> Iterator[tuple[Origin, Use]]:
    """Attributes with a use that says how large they are, once others are known."""
    exact = [use for use in _different(trace.uses) if use.number.exact]
    uses = sorted(exact, key=lambda use: (len(use.number.terms), use.number.origin is None))
    known: set[Origin] = set()
    more = True
    while more:
        more = False
        for use in uses:
            unknown = [origin for origin, _ in use.number.terms if origin.places and origin not in known]
            if len(unknown) == 1:
                known.add(unknown[0])
                more = True
                yield unknown[0], use


def _solver(origin: Origin, use: Use, known: Mapping[Origin, Followed]) -> Callable[[Sizes], Size]:
    """``labels = factor * origin + others + constant``, solved for the origin."""
    factor = dict(use.number.terms)[origin]
    others = tuple((other, f) for other, f in use.number.terms if other is not origin)

    def size(sizes: Sizes) -> Size:
        rest = _sum_of(others, use.number.constant, sizes, known)
        return Size(0.0).plus(sizes(use.labels), 1 / factor).plus(rest, -1 / factor)

    return size


def _sum_of(terms: Terms, constant: Fraction, sizes: Sizes, known: Mapping[Origin, Followed]) -> Size:
    found = Size(float(constant))
    for origin, factor in terms:
        found = found.plus(sizes(origin.read) if origin.read is not None else known[origin].size(sizes), factor)
    return found


def contradictions(trace: Trace, sizes: Sizes) -> Iterator[tuple[Use, list[np.ndarray]]]:
    """Uses in which a number would not be how many labels are kept: half of the channels of another tensor.

    With each come all runs that its origins stand for.
    """
    known = {followed.origin: followed for followed in used_numbers(trace) if followed.origin is not None}
    uses = _different(trace.uses)
    for use in uses:
        if all(origin.read is not None or origin in known for origin, _ in use.number.terms):
            number, kept = _sum_of(use.number.terms, use.number.constant, sizes, known), sizes(use.labels)
            left = number.plus(kept, Fraction(-1))
            # Whatever stays has the right number as it is. So this ends: each time some labels more are frozen.
            varies = any(abs(m) > 1e-6 for _, m in left.terms)
            if varies or (not use.number.exact and (kept.terms or number.terms)):
                yield use, list(_runs_of(use, uses))


def _runs_of(use: Use, uses: Sequence[Use]) -> Iterator[np.ndarray]:
    """The runs of a use, and of all other uses of its attributes, and of theirs."""
    origins: set[Origin] = set()
    todo = [use]
    while todo:
        one = todo.pop()
        yield one.labels
        new = {origin for origin, _ in one.number.terms} - origins
        origins |= new
        yield from (origin.read for origin in new if origin.read is not None)
        todo += [u for u in uses if any(origin in new and origin.places for origin, _ in u.number.terms)]


def _different(uses: list[Use]) -> list[Use]:
    """The uses without those that say the same."""
    return list({(_sum(use.number), use.labels.tobytes()): use for use in reversed(uses)}.values())[::-1]


def _sum(number: Traced) -> tuple[object, ...]:
    return frozenset(number.terms), number.constant, number.exact
