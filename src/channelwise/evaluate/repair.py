"""How a candidate is repaired before it is scored: weights re-fitted, batch norms re-estimated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from channelwise.api import ChannelGraph
from channelwise.errors import EvaluationError, InvalidArgumentError, with_hint
from channelwise.evaluate.arguments import check_args, check_callable
from channelwise.evaluate.images import Images
from channelwise.inputs.batches import ForwardFn
from channelwise.inputs.check import check_flag
from channelwise.inputs.devices import device_hint
from channelwise.recovery import compensate_from_grams
from channelwise.recovery.batchnorm import reestimate, reestimate_beside
from channelwise.selection import Selection
from channelwise.statistics import Grams
from channelwise.statistics.norms import NormInputs
from channelwise.structure import Structure
from channelwise.surgery.cuts import cut_tensors


@dataclass(frozen=True, eq=False)
class Repair:
    """How candidates, and the pruned model, are repaired.

    Args:
        images: `Images`, or a loader that they are read from: a DataLoader, a list. Weights are re-fitted to them and
            batch norms re-estimated on them, by `channelwise.recovery.recalibrate`.
        calibration_fn: Called as ``calibration_fn(model, *calib_args)`` to re-estimate batch norms instead, in place.
        calib_args: What ``calibration_fn`` takes after the model.
        compensate: Whether to re-fit weights. None: a search does if there are images, ``prune`` if the search did.

    Raises:
        InvalidArgumentError: an argument is of the wrong kind, or images are missing that ``compensate`` needs.
    """

    images: Any = None
    calibration_fn: Callable[..., Any] | None = None
    calib_args: Sequence[Any] = ()
    compensate: bool | None = None

    def __post_init__(self) -> None:
        if self.images is not None and not isinstance(self.images, Images):
            object.__setattr__(self, "images", Images(self.images))
        if self.calibration_fn is not None:
            check_callable(self.calibration_fn, "calibration_fn")
        object.__setattr__(self, "calib_args", check_args(self.calib_args, "calib_args"))
        if self.compensate is not None:
            check_flag("compensate", self.compensate)
        if self.compensate and self.images is None:
            raise InvalidArgumentError(
                "compensate=True needs calibration images: give loader= to a runner, or Repair(images)."
            )

    @property
    def refits(self) -> bool:
        """Whether a search re-fits weights."""
        return self.images is not None if self.compensate is None else bool(self.compensate)

    @property
    def calibrates(self) -> str:
        """What batch norms are re-estimated by: "function", "loader" or "no"."""
        return "function" if self.calibration_fn is not None else "loader" if self.images is not None else "no"

    def repairer(self, graph: ChannelGraph | None = None, *, refit: bool = False) -> Repairer:
        """What repairs candidates, those of ``graph`` or of a supernet; with ``refit`` their weights, too. Reads the
        images.

        Raises:
            InvalidArgumentError: the loader yields nothing.
        """
        images = self.images
        pairs = graph is not None and self.calibrates == "loader" and has_batch_norm(graph.model)
        # Also where nobody looks at them: a loader that yields nothing is found here and not in the workers.
        batches = images.batches if images is not None else []
        return Repairer(
            [] if self.calibration_fn is not None else batches,
            images.forward_fn if images is not None else None,
            self.calibration_fn,
            self.calib_args,
            images.grams(graph) if images is not None and graph is not None and refit else None,
            images.norms(graph) if images is not None and graph is not None and pairs else {},
        )


@dataclass(frozen=True, eq=False)
class Repairer:
    """Repairs candidates in place: a `Repair` with all that it needs as plain data, sent to worker processes once."""

    batches: Sequence[Any] = ()
    forward_fn: ForwardFn | None = None
    calibration_fn: Callable[..., Any] | None = None
    calib_args: Sequence[Any] = ()
    grams: Grams | None = None
    norms: Mapping[str, NormInputs] = field(default_factory=dict)

    def __call__(self, candidate: nn.Module, dense: nn.Module, structure: Structure, selection: Selection) -> None:
        """Repair ``candidate``, cut from ``dense`` by ``selection``. Raises EvaluationError that says what failed."""
        if self.grams is not None:
            with _step("Re-fitting the weights"):
                compensate_from_grams(candidate, dense, structure, selection, self.grams)
        if self.calibration_fn is not None:
            self.calibrate(candidate)
        elif self.batches and has_batch_norm(candidate):
            cuts = cut_tensors(structure, selection).tensors
            with _step("Re-estimating batch norms"):
                reestimate_beside(candidate, dense, cuts, self.norms, self.batches, self.forward_fn)

    def calibrate(self, model: nn.Module) -> None:
        """The user's function; without one, batch norms are re-estimated from the images."""
        if self.calibration_fn is not None:
            with _step("calibration_fn"):
                self.calibration_fn(model, *self.calib_args)
        elif self.batches and has_batch_norm(model):
            with _step("Re-estimating batch norms"):
                reestimate(model, self.batches, self.forward_fn)


def has_batch_norm(model: nn.Module) -> bool:
    """Whether there are statistics to re-estimate."""
    return any(isinstance(m, _BatchNorm) and m.track_running_stats for m in model.modules())


@contextmanager
def _step(what: str) -> Iterator[None]:
    try:
        yield
    except EvaluationError as error:
        raise EvaluationError(f"{what}: {error}") from error
    except Exception as error:
        text = with_hint(error, device_hint(error, "calibration_fn" if what == "calibration_fn" else "forward_fn"))
        raise EvaluationError(f"{what} raised {type(error).__name__}: {text}") from error
