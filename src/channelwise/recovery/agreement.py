"""How near the outputs of a pruned model are to the dense model's, on batches that its repair does not see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from channelwise.errors import InvalidArgumentError
from channelwise.inputs.batches import ForwardFn, evaluating, forward
from channelwise.inputs.tree import tensors_in
from channelwise.recovery.compensate import HELD_OUT

Score = Callable[[nn.Module], float]
"""How good a model is, larger is better."""


class IncomparableError(InvalidArgumentError):
    """Outputs of which nothing can be compared, so that a score is needed."""


def held_out(batches: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """The batches to repair a model with, and every fourth, at least one, to judge it by. A single one serves both."""
    held = list(batches[HELD_OUT - 1 :: HELD_OUT]) or list(batches[-1:])
    return [batch for batch in batches if not any(batch is one for one in held)] or list(batches), held


def agreement(dense: nn.Module, batches: Sequence[Any], forward_fn: ForwardFn | None) -> Score:
    """Less the mean square of what outputs differ by from the dense model's, relative to how much these vary."""
    with torch.no_grad(), evaluating(dense):
        wanted = [_floating(forward(dense, batch, forward_fn)) for batch in batches]

    def score(model: nn.Module) -> float:
        errors = []
        for batch, theirs in zip(batches, wanted, strict=True):
            ours = _floating(forward(model, batch, forward_fn))
            if not theirs or [t.shape for t in ours] != [t.shape for t in theirs]:
                raise IncomparableError(
                    "Outputs of the pruned and the dense model cannot be compared, as their shapes differ or they hold "
                    "no numbers: give a function that scores a model, larger is better (score= of repair, eval_fn= of "
                    "prune, evaluation= of OneStep.prune)."
                )
            for one, other in zip(ours, theirs, strict=True):
                spread = (other - other.mean(0)).square().sum().clamp_min(torch.finfo(other.dtype).tiny)
                errors.append(float((one - other).square().sum() / spread))
        return -sum(errors) / len(errors)

    return score


def _floating(output: Any) -> list[torch.Tensor]:
    return [t.float() for t in tensors_in(output, attributes=True) if t.is_floating_point()]
