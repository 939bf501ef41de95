"""Outputs of two models that should be equal: each is run once; in double precision where rounding may be at work."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from channelwise.inputs.example import cast
from channelwise.inputs.tree import output_values, tensors_in
from channelwise.tracing.tracer import undisturbed_randomness

Maker = Callable[[], nn.Module]
"""Builds a model for one run."""


def unlike(one: Maker, other: Maker, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """What differs between the outputs of two models in eval mode by more than their type explains; or None."""
    expected = run_once(other(), args, kwargs)
    text = difference(run_once(one(), args, kwargs), expected)
    if text is None or {t.dtype for t in expected if t.is_floating_point()} <= {torch.float64}:
        return text
    # What is picked by comparing values, the best boxes for example, may be others after rounding.
    try:
        args, kwargs = cast(list(args), torch.float64), cast(dict(kwargs), torch.float64)
        # The models may share tensors with the user's.
        found, expected = (run_once(copy.deepcopy(make()).double(), args, kwargs) for make in (one, other))
    except Exception:  # code or devices that want single precision
        return text
    # Code made for single precision may go on rounding to it in places.
    return difference(found, expected, tolerance=1e-6)


def run_once(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """The outputs of the model in eval mode, in which it is left; the random state stays as it is."""
    inputs = tensors_in([list(args), dict(kwargs)])
    with torch.no_grad(), undisturbed_randomness(inputs):
        torch.default_generator.manual_seed(0)
        return output_values(model.eval()(*args, **kwargs))


def difference(
    found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], tolerance: float | None = None
) -> str | None:
    """What differs between two lists of outputs by more than their type explains, or by more than that; or None."""
    if len(found) != len(expected):
        return "there are other outputs"
    for a, b in zip(found, expected, strict=True):
        if a.shape != b.shape:
            return f"an output has the shape {tuple(a.shape)} instead of {tuple(b.shape)}"
    apart = max((_apart(a, b) for a, b in zip(found, expected, strict=True)), default=0.0)
    if apart > (_tolerance(found) if tolerance is None else tolerance):
        return f"an output differs by {apart:.2g}, relative to its largest value"
    return None


def _apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference, relative to the largest value; infinite where numbers meet what is no number."""
    if a.is_complex() and b.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    if not (a.is_floating_point() and b.is_floating_point()):
        return 0.0 if a.dtype == b.dtype and torch.equal(a, b) else math.inf
    a, b = a.double(), b.double()
    finite = a.isfinite() & b.isfinite()
    if not ((a == b) | (a.isnan() & b.isnan()) | finite).all():
        return math.inf
    a, b = a[finite], b[finite]
    return (a - b).abs().max().item() / (b.abs().max().item() + 1e-12) if a.numel() else 0.0


def _tolerance(outputs: Sequence[torch.Tensor]) -> float:
    """Rounding in narrow types must not look like a mismatch."""
    dtypes = {t.dtype for t in outputs if t.is_floating_point()}
    if dtypes & {torch.float16, torch.bfloat16}:
        return 0.1
    return 1e-8 if dtypes == {torch.float64} else 2e-3
