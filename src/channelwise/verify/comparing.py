"""Outputs of a slim and a masked model: run once, compared, and in doubt compared in double precision."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn

from channelwise.inputs.example import cast
from channelwise.inputs.tree import mapped, output_values, tensors_in
from channelwise.tracing.tracer import undisturbed_randomness
from channelwise.verify.chance import WithoutChance

_ROUNDING = 1e-5
"""Larger relative differences are seldom rounding in single precision: they are looked at in double precision."""


_BESIDE_SINGLE = 1e-6
"""Relative, in double precision: code made for single precision may go on rounding to it in places."""

Maker = Callable[[], nn.Module]
"""Builds a model for one run."""

Both = tuple[list[torch.Tensor], list[torch.Tensor]]
"""What is compared of a slim and of a masked model."""

Compared = Callable[[Maker, Maker, Sequence[Any], Mapping[str, Any]], Both]
"""Runs a slim and a masked model on arguments, for what is compared of them."""


def run_once(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], *, train: bool = False, seed: int = 0
) -> list[torch.Tensor]:
    """The outputs of the model in eval or train mode, in which it is left; the random state stays as it is.

    In train mode random numbers, of which dropout draws as many as there are channels, are what they are on average.
    """
    inputs = tensors_in([list(args), dict(kwargs)])
    with torch.no_grad(), undisturbed_randomness(inputs), WithoutChance() if train else nullcontext():
        seed_generators(inputs, seed)
        return output_values(model.train(train)(*args, **kwargs))


def seed_generators(inputs: Sequence[torch.Tensor], seed: int) -> None:
    """``torch.manual_seed`` without its notes for devices that are not in use, which take longer than a small model."""
    if all(t.device.type == "cpu" for t in inputs):
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def difference(
    found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], tolerance: float | None = None
) -> str | None:
    """What differs between two lists of outputs by more than their type explains, or by more than that; or None."""
    if len(found) != len(expected):
        return "with fewer channels there are other outputs"
    for a, b in zip(found, expected, strict=True):
        if a.shape != b.shape:
            return f"with fewer channels an output has the shape {tuple(a.shape)} instead of {tuple(b.shape)}"
    if gap(found, expected) > (_tolerance(found) if tolerance is None else tolerance):
        return "with fewer channels the output is not that of the model with these channels set to zero"
    return None


def gap(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    """The largest difference between outputs of equal shapes, relative to the largest value of each.

    Infinite where one has a finite number and the other has not, and where whole numbers or truth values differ.
    """
    return max((_apart(a, b) for a, b in zip(found, expected, strict=True)), default=0.0)


def _apart(a: torch.Tensor, b: torch.Tensor) -> float:
    if a.is_complex() and b.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    if not (a.is_floating_point() and b.is_floating_point()):
        return 0.0 if a.dtype == b.dtype and torch.equal(a, b) else math.inf
    if not a.numel():
        return 0.0
    a, b = a.double(), b.double()
    most = (a - b).abs().max().item()
    if not math.isfinite(most):
        finite = a.isfinite() & b.isfinite()
        if not ((a == b) | (a.isnan() & b.isnan()) | finite).all():
            return math.inf
        if not finite.any():
            return 0.0
        a, b = a[finite], b[finite]
        most = (a - b).abs().max().item()
    return most / (b.abs().max().item() + 1e-12)


def in_doubt(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> bool:
    """Whether outputs in single precision are too far apart for rounding and too close for a verdict."""
    single = any(t.dtype == torch.float32 for t in found) and _tolerance(found) < 0.1
    return single and gap(found, expected) > _ROUNDING


def in_double(outputs: Sequence[torch.Tensor]) -> bool:
    """Whether these outputs are in double precision as they are."""
    return {t.dtype for t in outputs if t.is_floating_point()} <= {torch.float64}


def nudged(value: Any) -> Any:
    """The inputs with as much noise as rounding makes: what it changes in the outputs is no mismatch."""

    def nudge(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point():
            return tensor
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return tensor * (1 + 16 * torch.finfo(tensor.dtype).eps * noise.to(tensor.device)).to(tensor.dtype)

    return mapped(value, nudge)


def of_outputs(slim: Maker, masked: Maker, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Both:
    """The outputs of both models in eval mode."""
    return run_once(slim(), args, kwargs), run_once(masked(), args, kwargs)


def difference_in_double(
    slim: Maker,
    masked: Maker,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    of: Compared = of_outputs,
) -> str | None:
    """What differs between both models in double precision, "" if nothing; None where they do not run in it.

    ``of``: what of them is compared.
    """
    try:
        args, kwargs = cast(list(args), torch.float64), cast(dict(kwargs), torch.float64)
        one, other = of(partial(_double, slim), partial(_double, masked), args, kwargs)
        return difference(one, other, _BESIDE_SINGLE) or ""
    except Exception:  # code or devices that want single precision
        return None


def _double(make: Maker) -> nn.Module:
    # The model may share its tensors with the user's.
    return copy.deepcopy(make()).double()


def _tolerance(outputs: Sequence[torch.Tensor]) -> float:
    """Relative to the largest output; rounding in narrow types must not look like a mismatch."""
    dtypes = {t.dtype for t in outputs if t.is_floating_point()}
    if dtypes & {torch.float16, torch.bfloat16}:
        return 0.1
    return 1e-8 if dtypes == {torch.float64} else 2e-3
