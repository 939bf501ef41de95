"""Calibration images: the batches of a loader, read once, and what the layers of a model see on them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from channelwise.api import ChannelGraph
from channelwise.errors import InvalidArgumentError
from channelwise.inputs.batches import ForwardFn, batches_of, check_forward_fn, check_loader, samples_in
from channelwise.ranking import fingerprint
from channelwise.recovery.batchnorm import inputs_in_training
from channelwise.statistics import Grams, gather
from channelwise.statistics.norms import NormInputs

SAMPLES = 1000
"""So many samples of a loader are used unless the number of batches is given."""


class Images:
    """Images to repair candidates on. They are read at first use and kept, so that all candidates see the same.

    Args:
        loader: Yields batches, such as a DataLoader or a list, see `channelwise.inputs.batches`. No labels are needed.
        batches: How many batches to read; None: as many as hold 1000 samples.
        forward_fn: Called as ``forward_fn(model, batch)`` for batches that the model does not take as they are.

    Raises:
        InvalidArgumentError: what is given is no loader.
    """

    def __init__(self, loader: Any, batches: int | None = None, forward_fn: ForwardFn | None = None) -> None:
        check_loader(loader, batches)
        if forward_fn is not None:
            check_forward_fn(forward_fn)
        self.forward_fn = forward_fn
        self._loader, self._count = loader, batches
        self._batches: list[Any] | None = None
        self._grams: tuple[str, Grams] | None = None
        self._norms: tuple[str, dict[str, NormInputs]] | None = None

    @property
    def batches(self) -> list[Any]:
        """The batches. Raises InvalidArgumentError if the loader yields nothing."""
        if self._batches is None:
            batches = batches_of(self._loader, self._count)
            self._batches = list(batches if self._count is not None else _enough(batches))
        return self._batches

    def grams(self, graph: ChannelGraph) -> Grams:
        """What the layers of the dense model see on the images, gathered once for its present weights."""
        weights = fingerprint(graph.tensors())
        if self._grams is None or self._grams[0] != weights:
            grams = gather(graph.model, graph.structure, self.batches, forward_fn=self.forward_fn)
            self._grams = weights, grams
        return self._grams[1]

    def norms(self, graph: ChannelGraph) -> dict[str, NormInputs]:
        """What its batch norms see, the same."""
        weights = fingerprint(graph.tensors())
        if self._norms is None or self._norms[0] != weights:
            self._norms = weights, inputs_in_training(graph.model, self.batches, self.forward_fn)
        return self._norms[1]

    def come_from(self, loader: Any, batches: int | None, forward_fn: ForwardFn | None) -> bool:
        """Whether these arguments would give the same images."""
        return self._loader is loader and self._count == batches and self.forward_fn is forward_fn


def images_of(loader: Any, batches: int | None = None, forward_fn: ForwardFn | None = None) -> Images | None:
    """The images of a loader that may be missing. Raises InvalidArgumentError for a number of batches without one."""
    if loader is None and batches is not None:
        raise InvalidArgumentError(f"batches={batches!r} says how much of loader= to use, which is not given.")
    return None if loader is None else Images(loader, batches, forward_fn)


def _enough(batches: Iterator[Any]) -> Iterator[Any]:
    seen = 0
    for batch in batches:
        yield batch
        seen += samples_in(batch)
        if seen >= SAMPLES:
            return
