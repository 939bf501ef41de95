"""Runners by the name of their method."""

from __future__ import annotations

from typing import Any

from torch import nn

from channelwise.errors import InvalidArgumentError
from channelwise.methods.iterative.runner import IterativePruningRunner
from channelwise.methods.one_step.runner import OneStepPruningRunner
from channelwise.methods.other_names import other_names

_RUNNERS = {"iterative": IterativePruningRunner, "one_step": OneStepPruningRunner}


@other_names(input_signature="inputs")
def get_pruning_runner(
    model: nn.Module, inputs: Any, method: str, **options: Any
) -> IterativePruningRunner | OneStepPruningRunner:
    """The runner of a method: "iterative" or "one_step". ``options`` go to the runner.

    Raises:
        InvalidArgumentError: another method.
    """
    if not isinstance(method, str) or method not in _RUNNERS:
        raise InvalidArgumentError(
            f"method={method!r}: must be 'iterative' or 'one_step'. Once-for-all has no runner: use OFAPruner."
        )
    return _RUNNERS[method](model, inputs, **options)
