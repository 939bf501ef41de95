"""The names that users of the Vitis AI Optimizer import; loaded at first use so that importing is quick."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from channelwise.methods import IterativePruningRunner, OFAPruner, OneStepPruningRunner, get_pruning_runner

__all__ = ["IterativePruningRunner", "OFAPruner", "OneStepPruningRunner", "get_pruning_runner"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from channelwise import methods

        return getattr(methods, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; this version has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
