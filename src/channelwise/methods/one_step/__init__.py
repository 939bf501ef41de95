"""The one-step method: search for the best pruned sub-network at a target of compute, then prune to it."""

from channelwise.methods.one_step.one_step import OneStep
from channelwise.methods.one_step.runner import OneStepPruningRunner

__all__ = ["OneStep", "OneStepPruningRunner"]
