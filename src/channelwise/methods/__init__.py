"""Ways from a trained model to a pruned one."""

from channelwise.methods.factory import get_pruning_runner
from channelwise.methods.iterative.runner import IterativePruningRunner
from channelwise.methods.ofa import OFAPruner
from channelwise.methods.one_step.runner import OneStepPruningRunner

__all__ = ["IterativePruningRunner", "OFAPruner", "OneStepPruningRunner", "get_pruning_runner"]
