"""The names that users of the Vitis AI Optimizer import; loaded at first use so that importing is quick."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from channelwise import __version__
from pytorch_nndct._absent import INSTEAD, absent

if TYPE_CHECKING:
    from channelwise.methods import IterativePruningRunner, OFAPruner, OneStepPruningRunner, get_pruning_runner

__all__ = ["IterativePruningRunner", "OFAPruner", "OneStepPruningRunner", "__version__", "get_pruning_runner"]

_MODULES = ("nn", "pruning", "utils")


def __getattr__(name: str) -> Any:
    if name in __all__:
        from channelwise import methods

        return getattr(methods, name)
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in INSTEAD:
        raise absent(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; this version has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
