"""Checks of what users pass to a method, each with a message that says what would be right."""

from __future__ import annotations

import math
from collections.abc import Sequence

from channelwise.errors import InvalidArgumentError
from channelwise.inputs.check import describe
from channelwise.io.paths import is_path
from channelwise.select.widths import is_number

MODES = ("sparse", "slim")


def check_kinds(*wanted: tuple[object, str, type, str]) -> None:
    """Each value with its name, the class it must be of, and how to make one."""
    for value, name, kind, example in wanted:
        if not isinstance(value, kind):
            raise InvalidArgumentError(
                f"{name} must be of the class {kind.__name__}, such as {example}, not {describe(value)}."
            )


def check_one_of(**targets: object) -> None:
    """Exactly one is given."""
    given = [name for name, value in targets.items() if value is not None]
    if len(given) != 1:
        *names, last = targets
        found = " and ".join(given) if given else "none"
        raise InvalidArgumentError(f"Give exactly one of {', '.join(names)} and {last}; found {found}.")


def check_threshold(threshold: object) -> float:
    """A tolerated relative loss of score."""
    meaning = "the tolerated relative loss of score, e.g. 0.05"
    number = _number("threshold", threshold, meaning)
    if number <= 0:
        raise InvalidArgumentError(f"threshold={threshold!r}: must be larger than 0, {meaning}.")
    return number


def check_ratio(name: str, value: object) -> float:
    """A fraction to remove, in (0, 1)."""
    what = "parameters" if name.startswith("params") else "MACs"
    number = _number(name, value, f"the fraction of {what} to remove, between 0 and 1")
    if not 0 < number < 1:
        hint = f" For {number:g} % give {number / 100:g}." if 1 < number < 100 else ""
        raise InvalidArgumentError(
            f"{name}={value!r}: must be the fraction of {what} to remove, between 0 and 1 (both excluded).{hint}"
        )
    return number


def check_mode(mode: object) -> None:
    """``mode`` is "sparse" or "slim"."""
    if mode not in MODES:
        raise InvalidArgumentError(
            f"mode={mode!r}: must be 'sparse' (to retrain and go on) or 'slim' (the smaller model)."
        )


def check_path(name: str, path: object, *, optional: bool = False) -> None:
    """A path; where it is ``optional``, or None."""
    if not is_path(path) and not (optional and path is None):
        raise InvalidArgumentError(f"{name}={path!r}: must be a path.")


def _number(name: str, value: object, meaning: str) -> float:
    if not is_number(value) or not math.isfinite(value):
        raise InvalidArgumentError(f"{name}={value!r}: must be a number, {meaning}.")
    return float(value)


def plural(count: int, noun: str) -> str:
    """For messages: 1 group, 2 groups."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
