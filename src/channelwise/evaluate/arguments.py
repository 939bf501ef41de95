"""Checks of the functions that users pass, each with a message that says what would be right."""

from __future__ import annotations

from typing import Any

from channelwise.errors import InvalidArgumentError


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
