"""What an evaluation function returned, as a number; anything else is an error that says what to return instead."""

from __future__ import annotations

import math
from numbers import Real

import numpy as np
import torch

from channelwise.errors import EvaluationError

_FINITE = (
    "it must return a finite number for every pruned model, however bad. Does a loss overflow, or a mean run over no "
    "samples?"
)


def as_score(value: object) -> float:
    """``value`` as a finite float: a number, or a tensor or NumPy array with one element.

    Raises:
        EvaluationError: for everything else, telling what to return.
    """
    if isinstance(value, torch.Tensor):
        score = _element(value, value.numel(), tuple(value.shape), "tensor")
    elif isinstance(value, (np.ndarray, np.generic)):
        score = _element(value, value.size, value.shape, "NumPy array")
    elif isinstance(value, Real) and not isinstance(value, bool):
        score = _fitting(value)
    else:
        raise EvaluationError(_advice(value))
    if not math.isfinite(score):
        raise EvaluationError(f"eval_fn returned {score}; {_FINITE}")
    return score


def _element(value: torch.Tensor | np.ndarray | np.generic, elements: int, shape: tuple[int, ...], kind: str) -> float:
    if elements != 1:
        raise EvaluationError(
            f"eval_fn returned a {kind} of shape {shape}; it must return one number, e.g. `return score.mean()`."
        )
    item = value.item()
    if isinstance(item, bool) or not isinstance(item, Real):
        raise EvaluationError(f"eval_fn returned a {kind} of type {value.dtype}; it must return one real number.")
    return _fitting(item)


def _fitting(number: Real) -> float:
    try:
        return float(number)
    except OverflowError as error:
        raise EvaluationError(f"eval_fn returned a number too large for a float; {_FINITE}") from error


def _advice(value: object) -> str:
    kind = type(value).__name__
    if value is None:
        return "eval_fn returned None; it must return the score: is `return accuracy` missing at its end?"
    if hasattr(value, "avg"):
        return f"eval_fn returned the meter object {kind}; it must return its value: `return meter.avg`."
    if callable(getattr(value, "compute", None)):
        return f"eval_fn returned the metric object {kind}; it must return its value: `return metric.compute()`."
    if isinstance(value, (tuple, list)):
        return f"eval_fn returned a {kind} of {len(value)}; it must return one number, e.g. `return top1`."
    if isinstance(value, dict):
        return f"eval_fn returned a dict with the keys {list(value)[:5]}; it must return one number of it."
    return f"eval_fn returned {value!r} ({kind}); it must return a number."
