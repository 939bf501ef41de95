"""How candidates are scored: the user's function and its arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from channelwise.evaluate.arguments import check_args, check_callable

EvalFn = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """How candidates are scored.

    Args:
        eval_fn: Called as ``eval_fn(model, *args)`` with a model in eval mode; returns a score: a number, a 0-d tensor
            or a NumPy scalar. Random generators are seeded equally for every call.
        args: What ``eval_fn`` takes after the model.

    Raises:
        InvalidArgumentError: ``eval_fn`` is no function, or ``args`` is no tuple.
    """

    eval_fn: EvalFn
    args: Sequence[Any] = ()

    def __post_init__(self) -> None:
        check_callable(self.eval_fn)
        object.__setattr__(self, "args", check_args(self.args))
