"""What is done to every candidate of a search before it is scored: weights re-fitted, batch norms re-estimated."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from channelwise.api import ChannelGraph
from channelwise.errors import EvaluationError, InvalidArgumentError
from channelwise.inputs.batches import ForwardFn, batches_of, check_loader
from channelwise.inputs.tree import tensors_in
from channelwise.ranking import fingerprint
from channelwise.recovery import compensate, compensate_from_grams, recalibrate
from channelwise.selection import Selection
from channelwise.statistics import Grams, gather
from channelwise.structure import Structure

log = logging.getLogger(__name__)

SAMPLES = 1000
"""So many samples of a loader are used unless the number of batches is given."""


class Calibration:
    """Repairs candidates in place. It is sent to worker processes once, with the images that they need.

    Arguments:
        loader: calibration images, or None. They are read once, so that all candidates see the same.
        batches: how many batches to read; by default as many as hold `SAMPLES` samples.
        forward_fn: how a batch is given to the model.
        function, args: the user's own ``calibration_fn(model, *args)``, called instead of re-estimating batch norms.
        refit: re-fit weights, once `gather` has looked at the images.
    """

    def __init__(
        self,
        loader: Any = None,
        batches: int | None = None,
        *,
        forward_fn: ForwardFn | None = None,
        function: Callable[..., Any] | None = None,
        args: Sequence[Any] = (),
        refit: bool = False,
    ) -> None:
        if loader is not None:
            check_loader(loader, batches)
        elif batches is not None:
            raise InvalidArgumentError(f"batches={batches!r} says how much of loader= to use, which is not given.")
        self.loader = loader
        self.forward_fn = forward_fn
        self.function = function
        self.args = tuple(args)
        self.refit = refit
        self._batches = batches
        self._images: list[Any] | None = None
        self._grams: Grams | None = None
        # Of which weights the grams are.
        self._weights = ""

    @property
    def images(self) -> list[Any]:
        """The batches, read at first use. Raises InvalidArgumentError if the loader yields nothing."""
        if self._images is None:
            self._images = [] if self.loader is None else calibration_batches(self.loader, self._batches)
        return self._images

    def __getstate__(self) -> dict[str, Any]:
        images = self.images if self.function is None else []
        return {**self.__dict__, "loader": None, "_images": images, "_grams": self._grams if self.refit else None}

    def adopt(self, other: Calibration) -> None:
        """Take over what ``other`` has read and gathered, if this one would read the same."""
        same = self.loader is other.loader and self.forward_fn is other.forward_fn and self._batches == other._batches
        if same and self._images is None:
            self._images, self._grams, self._weights = other._images, other._grams, other._weights

    def gather(self, graph: ChannelGraph) -> Grams:
        """What the layers of the dense model see on the images."""
        weights = fingerprint(graph.tensors())
        if self._grams is None or self._weights != weights:
            self._grams = gather(graph.model, graph.structure, self.images, forward_fn=self.forward_fn)
            self._weights = weights
        return self._grams

    def __call__(self, candidate: nn.Module, dense: nn.Module, structure: Structure, selection: Selection) -> None:
        """Repair ``candidate``, cut from ``dense`` by ``selection``. Raises EvaluationError that says what failed."""
        if self.refit:
            assert self._grams is not None
            with _step("Re-fitting the weights"):
                compensate_from_grams(candidate, dense, structure, selection, self._grams)
        self.statistics(candidate)

    def finish(self, slim: nn.Module, graph: ChannelGraph, selection: Selection, *, refit: bool) -> None:
        """Repair the model that is returned: as a candidate, but re-fitted layer by layer on what each layer sees."""
        if refit and self.images:
            try:
                compensate(slim, graph, selection, self.images, forward_fn=self.forward_fn)
            except InvalidArgumentError as error:
                log.warning("%s Re-fitted as the candidates of the search were.", error)
                compensate_from_grams(slim, graph.model, graph.structure, selection, self.gather(graph))
        self.statistics(slim)

    def statistics(self, model: nn.Module) -> None:
        """Batch-norm statistics: by the user's function if there is one, else from the images."""
        if self.function is not None:
            with _step("calibration_fn"):
                self.function(model, *self.args)
        elif self.images and has_batch_norm(model):
            with _step("Re-estimating batch norms"):
                recalibrate(model, self.images, forward_fn=self.forward_fn)


def calibration_batches(loader: Any, batches: int | None) -> list[Any]:
    """The first ``batches`` batches of a loader, or as many as hold `SAMPLES` samples.

    Raises:
        InvalidArgumentError: what is given is no loader, or yields nothing.
    """
    if batches is not None:
        return list(batches_of(loader, batches))
    return list(_enough(batches_of(loader)))


def _enough(batches: Iterator[Any]) -> Iterator[Any]:
    seen = 0
    for batch in batches:
        yield batch
        first = next(iter(tensors_in(batch)), None)
        seen += 1 if first is None or not first.dim() else len(first)
        if seen >= SAMPLES:
            return


def has_batch_norm(model: nn.Module) -> bool:
    """Whether there are statistics to re-estimate."""
    return any(isinstance(m, _BatchNorm) and m.track_running_stats for m in model.modules())


@contextmanager
def _step(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise EvaluationError(f"{what} raised {type(error).__name__}: {error}") from error
