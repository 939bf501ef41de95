"""Channel importance by what the loss says about it: Taylor expansion and Fisher information of channels' gates."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from channelwise.errors import ChannelwiseError, EvaluationError, InvalidArgumentError
from channelwise.inputs.batches import batches_of, check_loader, forward, length_of, moved
from channelwise.inputs.check import model_device, unwrap
from channelwise.progress import progress
from channelwise.ranking.consumer_l2 import consumer_l2
from channelwise.ranking.microbatches import micro_batches
from channelwise.ranking.weights import Weights, fingerprint
from channelwise.structure import Group, Slots, Structure
from channelwise.surgery.clone import clone_module
from channelwise.tensors import named_tensors
from channelwise.tracing.tracer import undisturbed_randomness

log = logging.getLogger(__name__)

LARGEST_SCALE = 2.0**16


class GateGradients(ABC):
    """Base of the rankings by the gradient of the loss with respect to a gate on every channel.

    The gate multiplies what later layers read of a channel, so its gradient is the sum of weight x gradient over all
    input slots of the channel: the change of the loss when it closes, to first order. Channels that no weight reads are
    gated where they are produced. Scores of different groups have one scale, that of the loss.

    Arguments:
        loss: called with the model's outputs and with what follows the inputs in a batch: ``loss(outputs, targets)``
            for batches (inputs, targets), ``loss(outputs)`` for batches without labels, ``loss(outputs, batch)`` for
            batches that are dicts. Returns a tensor of one element, a mean over the samples.
        loader: a DataLoader or another iterable of batches, see `channelwise.inputs.batches`.
        batches: how many of its batches are looked at; default: all.
        micro_batch: batches are taken in parts of so many samples, which bounds the memory, and over which the
            statistic is taken: smaller parts show better how samples differ, and take longer. None: whole batches.
        forward_fn: ``forward_fn(model, batch)`` returns the outputs; default: the model is called with the inputs.
        quiet: show no progress.

    The model runs in eval mode as a private copy: parameters that do not require gradients are looked at all the same,
    and the user's model, its gradients, flags and the random state stay as they are.
    """

    comparable = True
    __name__ = "gate gradients"

    def __init__(
        self,
        loss: Callable[..., torch.Tensor],
        loader: Any,
        batches: int | None = None,
        *,
        micro_batch: int | None = 32,
        forward_fn: Callable[[nn.Module, Any], Any] | None = None,
        quiet: bool = False,
    ) -> None:
        if not callable(loss):
            raise InvalidArgumentError(f"loss must be a function (outputs, targets) -> tensor, not {loss!r}.")
        check_loader(loader, batches)
        if micro_batch is not None and (type(micro_batch) is not int or micro_batch < 1):
            raise InvalidArgumentError(f"micro_batch must be an integer of at least 1 or None, not {micro_batch!r}.")
        self.loss = loss
        self.loader = loader
        self.batches = batches
        self.micro_batch = micro_batch
        self.forward_fn = forward_fn
        self.quiet = quiet
        self._bound: tuple[tuple[str, str], BoundScores] | None = None

    @abstractmethod
    def statistic(self, gradient: np.ndarray) -> np.ndarray:
        """What is averaged over the micro-batches: from gate gradients (channels,) to values (channels,)."""

    def importance(self, mean: np.ndarray) -> np.ndarray:
        """The score, from the mean (channels,) of the statistic; it adds up over channels of different groups."""
        return mean

    def bind(self, model: nn.Module | None, structure: Structure) -> BoundScores:
        """The scores for the weights that ``model`` has now; computed once as long as they stay the same.

        Raises:
            InvalidArgumentError: there is no model, or the loader or the loss is unusable.
            EvaluationError: the loss or the model fails on a batch.
        """
        if model is None:
            raise InvalidArgumentError(
                f"The ranking {self.__name__!r} needs the model, and only its tensors are at hand: use "
                "graph.select(...) or give model=."
            )
        model = unwrap(model)
        tensors = {name: t for name, t in named_tensors(model).items() if name in structure.tensors}
        key = structure.digest(), fingerprint(tensors)
        if self._bound is None or self._bound[0] != key:
            self._bound = key, BoundScores(self.__name__, self._measure(model, structure))
        return self._bound[1]

    def __call__(self, group: Group, tensors: Mapping[str, torch.Tensor]) -> np.ndarray:
        raise InvalidArgumentError(
            f"The ranking {self.__name__!r} needs the model: use channelwise.ranking.bind(ranking, model, structure)."
        )

    def _measure(self, model: nn.Module, structure: Structure) -> dict[str, np.ndarray]:
        if not structure.groups:
            return {}
        tensors = named_tensors(model)
        with undisturbed_randomness(list(tensors.values())), torch.inference_mode(False), torch.enable_grad():
            clone = clone_module(model, {}).eval()
            gates = _Gates(clone, structure)
            total = {group.name: np.zeros(group.size) for group in structure.groups}
            count = 0
            for part in self._parts(clone):
                for name, gradient in gates.gradients(partial(self._loss, clone, part)).items():
                    total[name] += self.statistic(gradient)
                count += 1
        scores = {name: self.importance(value / count) for name, value in total.items()}
        missed = [group for group in structure.groups if group.name not in gates.reached]
        for group in missed:
            norms = consumer_l2(group, Weights.of(tensors, structure))
            scores[group.name] = norms / max(float(norms.max()), 1e-30) * np.finfo(np.float32).tiny
        if missed:
            log.warning(
                "%s: no gradient reaches %s in eval mode (auxiliary heads, or code under no_grad). Their channels are "
                "ranked by weights, below all others: exclude them if they must stay.",
                self.__name__,
                ", ".join(group.name for group in missed),
            )
        return scores

    def _parts(self, model: nn.Module) -> Iterator[Any]:
        total = min(filter(None, (length_of(self.loader), self.batches)), default=0)
        with progress(f"Gradients of {type(model).__name__}", total, quiet=self.quiet) as advance:
            for batch in batches_of(self.loader, self.batches):
                yield from micro_batches(moved(batch, model_device(model)), self.micro_batch)
                advance("")

    def _loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        try:
            outputs = forward(model, batch, self.forward_fn)
            loss = self.loss(outputs, *_extras(batch))
        except (ChannelwiseError, MemoryError):
            raise
        except torch.OutOfMemoryError as error:
            raise EvaluationError(
                f"The gradients of {self.micro_batch or 'all'} samples at a time do not fit into the memory of the "
                "device; give a smaller micro_batch=."
            ) from error
        except Exception as error:
            given = ["outputs", *("batch" if isinstance(batch, Mapping) else "target" for _ in _extras(batch))]
            raise EvaluationError(
                f"The ranking {self.__name__!r} could not compute the loss of a batch: {type(error).__name__}: {error} "
                f"(the loss is called as loss({', '.join(given)}) after the model)."
            ) from error
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            kind = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else repr(loss)
            raise EvaluationError(
                f"The loss must return a tensor of one element, e.g. `return loss.mean()`, not {kind}."
            )
        if not loss.requires_grad:
            raise EvaluationError(
                "The loss does not depend on the model's weights: does the model or the loss detach its result, or run "
                "under no_grad?"
            )
        return loss.reshape(())


class Taylor(GateGradients):
    """Mean absolute gate gradient, the change of the loss to first order (Molchanov et al. 2017, arXiv:1611.06440).

    The score is its square (Molchanov et al. 2019, arXiv:1906.10771): the order of the channels of a group is the same,
    and groups are compared by changes of a trained model's loss, which are quadratic.
    """

    __name__ = "taylor"

    def statistic(self, gradient: np.ndarray) -> np.ndarray:
        return np.abs(gradient)

    def importance(self, mean: np.ndarray) -> np.ndarray:
        return np.square(mean)


class Fisher(GateGradients):
    """Mean squared gate gradient: the diagonal of the Fisher information, a trained model's change of loss to second
    order (Theis et al. 2018, arXiv:1801.05787; for channels that go together Liu et al. 2021, arXiv:2108.00708)."""

    __name__ = "fisher"

    def statistic(self, gradient: np.ndarray) -> np.ndarray:
        return np.square(gradient)


class BoundScores:
    """A criterion whose scores are known: what a gradient ranking found for one model's weights."""

    comparable = True

    def __init__(self, name: str, scores: Mapping[str, np.ndarray]) -> None:
        self.__name__ = name
        self._scores = dict(scores)

    def __call__(self, group: Group, tensors: Mapping[str, torch.Tensor]) -> np.ndarray:
        if group.name not in self._scores:
            raise InvalidArgumentError(f"The {self.__name__} scores are of another model: it has no {group.name!r}.")
        return self._scores[group.name]


class _Gates:
    """Gate gradients of a model whose weights may be prepared for that."""

    def __init__(self, model: nn.Module, structure: Structure) -> None:
        self._structure = structure
        found = {name: t for name, t in named_tensors(model).items() if name in structure.tensors}
        weights = Weights.of(found, structure)
        self._slots: dict[str, list[Slots]] = {}
        for group in structure.groups:
            choices = (weights.consumers(group), weights.ranked(group))
            trainable = ([s for s in slots if structure.tensors[s.tensor].is_parameter] for slots in choices)
            self._slots[group.name] = next((slots for slots in trainable if slots), [])
        for module in model.modules():
            if isinstance(module, nn.RNNBase):
                # cuDNN has no gradients of recurrent layers in eval mode, which differs by their dropout alone.
                module.dropout, module.training = 0.0, True
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        names = {s.tensor for slots in self._slots.values() for s in slots}
        self._tensors = {name: found[name].requires_grad_() for name in sorted(names)}
        self._scale = LARGEST_SCALE if any(t.dtype == torch.float16 for t in self._tensors.values()) else 1.0
        self.reached: set[str] = set()

    def gradients(self, loss: Callable[[], torch.Tensor]) -> dict[str, np.ndarray]:
        """Gradient of the loss with respect to every channel's gate, by group: (channels,)."""
        products = self._products(loss)
        found = {}
        for name, slots in self._slots.items():
            gates = [products.slot_sums(s.tensor, s.axis)[s.index].sum(axis=1) for s in slots if s.tensor in products]
            if gates:
                self.reached.add(name)
                found[name] = np.sum(gates, axis=0)
        return found

    def _products(self, loss: Callable[[], torch.Tensor]) -> Weights:
        """Weight x gradient of all weights that the loss depends on."""
        tensors: Sequence[torch.Tensor] = list(self._tensors.values())
        while True:
            value = loss()
            if not math.isfinite(value.item()):
                raise EvaluationError(f"The loss of a batch is {value.item()}; gradients need a finite loss.")
            gradients = torch.autograd.grad(value * self._scale, tensors, allow_unused=True)
            if all(g is None or bool(g.isfinite().all()) for g in gradients):
                break
            # Half precision overflows where the loss is scaled too much, and loses small gradients where too little.
            if self._scale <= 1:
                raise EvaluationError("The gradients of a batch are not finite; check the weights, or use float32.")
            self._scale /= 16
        products = {}
        for name, gradient in zip(self._tensors, gradients, strict=True):
            if gradient is not None:
                wide = torch.promote_types(gradient.dtype, torch.float32)
                product = self._tensors[name].detach().to(wide) * gradient.to(wide).conj() / self._scale
                products[name] = product.real if product.is_complex() else product
        return Weights(products, self._structure.tensors)


def _extras(batch: Any) -> list[Any]:
    """What the loss gets besides the outputs."""
    if isinstance(batch, Mapping):
        return [batch]
    return list(batch[1:]) if isinstance(batch, (tuple, list)) else []
