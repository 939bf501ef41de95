"""Ways from a trained model to a pruned one."""

from channelwise.methods.iterative import IterativePruningRunner, get_pruning_runner

__all__ = ["IterativePruningRunner", "get_pruning_runner"]
