"""The runners, where programs import them from this module."""

from __future__ import annotations

from typing import Any

from channelwise.methods import IterativePruningRunner, OFAPruner, OneStepPruningRunner, get_pruning_runner
from pytorch_nndct._absent import INSTEAD, absent

__all__ = ["IterativePruningRunner", "OFAPruner", "OneStepPruningRunner", "get_pruning_runner"]


def __getattr__(name: str) -> Any:
    if name in INSTEAD:
        raise absent(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; this version has {', '.join(__all__)}")
