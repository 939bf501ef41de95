"""channelwise: structured pruning for PyTorch that traces any network and proves what it removes."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "trace": "channelwise.api",
    "ChannelGraph": "channelwise.api",
    "Selection": "channelwise.selection",
    "save": "channelwise.surgery",
    "load": "channelwise.surgery",
    "fixer": "channelwise.surgery",
    "Iterative": "channelwise.methods",
    "OneStep": "channelwise.methods",
    "Target": "channelwise.methods",
    "Channels": "channelwise.methods",
    "SearchOptions": "channelwise.methods",
    "Evaluation": "channelwise.evaluate",
    "Images": "channelwise.evaluate",
    "Repair": "channelwise.evaluate",
    "Where": "channelwise.execution.where",
    "IterativePruningRunner": "channelwise.methods",
    "OneStepPruningRunner": "channelwise.methods",
    "OFAPruner": "channelwise.methods",
    "prune": "channelwise.methods.prune",
    "Pruned": "channelwise.methods.prune",
    "sandwich": "channelwise.methods.ofa",
}

_PACKAGES = ("ranking", "recovery", "search")

__all__ = [
    "ChannelGraph",
    "Channels",
    "Evaluation",
    "Images",
    "Iterative",
    "IterativePruningRunner",
    "OFAPruner",
    "OneStep",
    "OneStepPruningRunner",
    "Pruned",
    "Repair",
    "SearchOptions",
    "Selection",
    "Target",
    "Where",
    "__version__",
    "fixer",
    "load",
    "prune",
    "ranking",
    "recovery",
    "sandwich",
    "save",
    "search",
    "trace",
]

if TYPE_CHECKING:
    from channelwise import ranking, recovery, search
    from channelwise.api import ChannelGraph, trace
    from channelwise.evaluate import Evaluation, Images, Repair
    from channelwise.execution.where import Where
    from channelwise.methods import (
        Channels,
        Iterative,
        IterativePruningRunner,
        OFAPruner,
        OneStep,
        OneStepPruningRunner,
        SearchOptions,
        Target,
    )
    from channelwise.methods.ofa import sandwich
    from channelwise.methods.prune import Pruned, prune
    from channelwise.selection import Selection
    from channelwise.surgery import fixer, load, save


def __getattr__(name: str) -> Any:
    """Import on first use: ``import channelwise`` itself does not load torch."""
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    if name in _PACKAGES:
        return importlib.import_module(f"channelwise.{name}")
    raise AttributeError(f"module 'channelwise' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
