"""Keyword arguments that may be given by another name: programs of other releases use it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from channelwise.errors import InvalidArgumentError

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def other_names(**known: str) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """``other_names(input_signature="inputs")``: the decorated function takes both as keywords, but not together.

    Raises:
        InvalidArgumentError: when the function is called with two names of one argument.
    """

    def decorate(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        @functools.wraps(function)
        def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            for other in kwargs.keys() & known.keys():
                name = known[other]
                if name in kwargs:
                    raise InvalidArgumentError(f"{name} and {other} are two names of one argument: give one of them.")
                kwargs[name] = kwargs.pop(other)
            return function(*args, **kwargs)

        return call

    return decorate
