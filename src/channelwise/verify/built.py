"""The pruned models that verification builds go when their trial is over, also those that refer to themselves."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass, field

from torch import nn


@dataclass
class Built:
    """Models of one trial after another.

    The garbage collector is off during a trace. It is called only where a model of a trial is still there after it, as
    one is whose hook is a method of its own, and no more once that did not help.
    """

    _models: list[weakref.ref[nn.Module]] = field(default_factory=list)
    _helps: bool = True

    def note(self, model: nn.Module) -> nn.Module:
        """The same model, built by the trial that runs now."""
        self._models.append(weakref.ref(model))
        return model

    def release(self) -> None:
        """The trial is over."""
        if self._helps and self._alive():
            gc.collect()
            self._helps = not self._alive()
        self._models.clear()

    def _alive(self) -> bool:
        return any(model() is not None for model in self._models)
