"""Checks of what users pass to the runners, each with a message that says what would be right."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from numbers import Real
from typing import Any

from channelwise.errors import InvalidArgumentError

MODES = ("sparse", "slim")


def check_callable(function: object, name: str = "eval_fn") -> None:
    """``function`` must be the function itself, not its result."""
    if not callable(function):
        raise InvalidArgumentError(
            f"{name} must be a function called as {name}(model, *args), not {function!r}. Give the function itself, "
            "not its result."
        )


def check_args(args: object, name: str = "args") -> tuple[Any, ...]:
    """``args`` as a tuple."""
    if isinstance(args, (tuple, list)):
        return tuple(args)
    raise InvalidArgumentError(
        f"{name} must be a tuple of what the function takes after the model, not {type(args).__name__}. "
        f"A single one: {name}=(loader,)."
    )


def check_one_target(removal_ratio: object, threshold: object, spec_path: object) -> None:
    """Exactly one of the three targets must be given, and be a possible value."""
    targets = {"removal_ratio": removal_ratio, "threshold": threshold, "spec_path": spec_path}
    given = [name for name, value in targets.items() if value is not None]
    if len(given) != 1:
        found = " and ".join(given) if given else "none"
        raise InvalidArgumentError(f"Give exactly one of removal_ratio, threshold and spec_path; found {found}.")
    if removal_ratio is not None:
        check_ratio("removal_ratio", removal_ratio)
    meaning = "the tolerated relative loss of score, e.g. 0.05"
    if threshold is not None and _number("threshold", threshold, meaning) <= 0:
        raise InvalidArgumentError(f"threshold={threshold!r}: must be larger than 0, {meaning}.")
    check_path("spec_path", spec_path)


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


def check_path(name: str, path: object) -> None:
    """A path, or None."""
    if path is not None and not isinstance(path, (str, os.PathLike)):
        raise InvalidArgumentError(f"{name}={path!r}: must be a path.")


def _number(name: str, value: object, meaning: str) -> float:
    if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
        raise InvalidArgumentError(f"{name}={value!r}: must be a number, {meaning}.")
    return float(value)


def plural(count: int, noun: str) -> str:
    """For messages: 1 group, 2 groups."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
