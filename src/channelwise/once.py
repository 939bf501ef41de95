"""What a function makes of an object, made once and kept as long as the object lives."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import wraps
from typing import TypeVar

Of = TypeVar("Of")
Made = TypeVar("Made")


def once_each(function: Callable[[Of], Made]) -> Callable[[Of], Made]:
    """``function``, called once for every object; for objects that have no hash, and that do not change."""
    known: dict[int, tuple[weakref.ref[Of], Made]] = {}

    @wraps(function)
    def call(of: Of) -> Made:
        key = id(of)
        found = known.get(key)
        if found is None or found[0]() is not of:
            found = known[key] = weakref.ref(of, lambda _: known.pop(key, None)), function(of)
        return found[1]

    return call
