"""Ways from a trained model to a pruned one."""

from channelwise.methods.factory import get_pruning_runner
from channelwise.methods.iterative import Iterative, IterativePruningRunner
from channelwise.methods.ofa import OFAPruner
from channelwise.methods.one_step import OneStep, OneStepPruningRunner
from channelwise.methods.options import Channels, SearchOptions, Target

__all__ = [
    "Channels", "Iterative", "IterativePruningRunner", "OFAPruner", "OneStep", "OneStepPruningRunner", "SearchOptions",
    "Target", "get_pruning_runner",
]  # fmt: skip
