"""The iterative method: measure once how the score reacts to pruning each group, then prune in rounds."""

from channelwise.methods.iterative.iterative import Iterative
from channelwise.methods.iterative.runner import IterativePruningRunner

__all__ = ["Iterative", "IterativePruningRunner"]
