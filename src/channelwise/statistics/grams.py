"""The Gram matrix of every layer's inputs, gathered from the dense model in one pass over calibration images."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from channelwise.inputs.batches import batches_of, forward
from channelwise.statistics.finite import unusable, usable
from channelwise.statistics.memory import free_bytes
from channelwise.statistics.moments import Moments
from channelwise.statistics.products import Product, ProductWatch, batch_norm_call
from channelwise.structure import Structure
from channelwise.surgery.clone import clone_module
from channelwise.tensors import named_tensors, widest

log = logging.getLogger(__name__)

POSITIONS = 64
"""The number of output positions of a sample that are looked at: neighbours are nearly the same."""


@dataclass(frozen=True, eq=False)
class LayerGram:
    """Second moments of a layer's inputs: ``covariance`` (groups, features, features), ``mean`` (groups, features).

    ``normalised``: a batch norm follows at once, so the mean of the layer's output does not matter.
    """

    product: Product
    kernel: tuple[int, ...]
    covariance: Tensor
    mean: Tensor
    normalised: bool

    def gram(self, part: int) -> Tensor:
        """What measures an error of the weights of one part: the covariance if the bias or the batch norm that follows
        can make an offset good, else the mean square."""
        covariance = self.covariance[part].to(widest(self.covariance.device))
        if self.free_offset:
            return covariance
        mean = self.mean[part].to(covariance.dtype)
        return covariance + mean.unsqueeze(1) * mean

    @property
    def free_offset(self) -> bool:
        return self.normalised or self.product.bias is not None


@dataclass(frozen=True, eq=False)
class Grams:
    """``layers`` by name of the weight; ``skipped``: other weights that read prunable channels, and why."""

    layers: Mapping[str, LayerGram]
    skipped: Mapping[str, str] = field(default_factory=dict)


def gather(
    model: nn.Module,
    structure: Structure,
    loader: Any,
    batches: int | None = None,
    *,
    forward_fn: Any = None,
    positions: int = POSITIONS,
    memory: int | None = None,
) -> Grams:
    """Run the model in eval mode and gather the moments of what every layer that reads prunable channels reads.

    The model is not changed. Layers are convolutions and linear layers whose weight is a parameter, wherever the code
    calls them; other weights that read channels are named in ``skipped``.

    Arguments:
        loader: calibration images, see `channelwise.inputs.batches`.
        positions: how many output positions of a sample are looked at, chosen at random.
        memory: bytes that the matrices may take; by default half of what is free. On CUDA what does not fit is
            gathered in further passes and kept in host memory; on the host the largest layers are skipped.

    Raises:
        EvaluationError: a layer reads NaN, infinity or numbers too large on a batch; it names the batch.
    """
    wanted = weights_that_read(structure)
    device = next((t.device for t in model.parameters()), torch.device("cpu"))
    room = free_bytes(device) // 2 if memory is None else memory
    clone = clone_module(model, {id(p): p for p in model.parameters()}).eval()
    tensors = named_tensors(clone)
    layers: dict[str, LayerGram] = {}
    while True:
        watch = _Gathering(tensors, wanted - layers.keys(), positions, room)
        with torch.no_grad(), watch:
            for number, batch in enumerate(batches_of(loader, batches)):
                forward(clone, batch, forward_fn)
                watch.check(batch, number)
        layers.update(watch.results())
        # On the host the matrices gathered so far take the room that another pass would need.
        if device.type == "cpu" or not watch.postponed or not watch.moments:
            break
    skipped = dict.fromkeys(watch.postponed, "its matrix is too large for the memory allowed")
    absent = wanted - layers.keys() - skipped.keys()
    skipped |= dict.fromkeys(absent, "no convolution or linear layer reads it as it is")
    for name, why in sorted(skipped.items()):
        log.info("%s cannot be compensated: %s.", name, why)
    return Grams(layers, skipped)


def weights_that_read(structure: Structure) -> set[str]:
    """Names of the weights that read channels of a group."""
    names = {s.tensor for group in structure.groups for s in group.slots if s.role == "input"}
    return {name for name in names if structure.tensors[name].is_parameter and len(structure.tensors[name].shape) > 1}


def choose_rows(product: Product, y: Tensor, samples: int, positions: int, generator: torch.Generator) -> Tensor | None:
    """Random rows of a product with output ``y`` and this number of samples; None for all."""
    count = product.row_count(y)
    if count <= positions * samples:
        return None
    return torch.randperm(count, generator=generator)[: positions * samples].to(y.device)


class NormalisedWatch(ProductWatch):
    """Finds the products whose outputs a batch norm takes at once; ``normalised`` holds the names of their weights."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__(names)
        self.normalised: set[str] = set()
        self._outputs: dict[int, tuple[weakref.ref[Tensor], str]] = {}

    def remember(self, y: Tensor, name: str) -> None:
        """``y`` is the output of the product with the weight ``name``."""
        self._outputs[id(y)] = weakref.ref(y), name

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        norm = batch_norm_call(func, args, kwargs)
        if norm is not None:
            reference, name = self._outputs.get(id(norm[0]), (None, ""))
            if reference is not None and reference() is norm[0]:
                self.normalised.add(name)
        return super().__torch_function__(func, types, args, kwargs)


class _Gathering(NormalisedWatch):
    """One pass: adds up the moments of the products with a wanted weight as far as there is room for them."""

    def __init__(self, tensors: Mapping[str, Tensor], wanted: set[str], positions: int, room: int) -> None:
        super().__init__({id(t): name for name, t in tensors.items()})
        self._positions = positions
        self._generator = torch.Generator().manual_seed(0)
        self._tensors = tensors
        self._wanted = wanted
        self._room = room
        self._products: dict[str, Product] = {}
        self.moments: dict[str, Moments] = {}
        self.postponed: set[str] = set()

    def product(self, product: Product, x: Tensor, compute: Any) -> Tensor:
        y: Tensor = compute()
        name = product.weight
        if name not in self._wanted or name in self.postponed:
            return y
        weight = self._tensors[name]
        if name not in self.moments and not self._begin(product, weight):
            return y
        samples = x.shape[0] if x.dim() > 1 else 1
        chosen = choose_rows(product, y, samples, self._positions, self._generator)
        self.moments[name].add(product.rows(x, tuple(weight.shape[2:]), chosen))
        self.remember(y, name)
        return y

    def _begin(self, product: Product, weight: Tensor) -> bool:
        groups, features, _ = product.matrix(weight.detach()).shape
        needed = groups * features**2 * widest(weight.device).itemsize
        if needed > self._room:
            self.postponed.add(product.weight)
            return False
        self._room -= needed
        self._products[product.weight] = product
        self.moments[product.weight] = Moments.zeros(groups, features, None, weight.device)
        return True

    def check(self, batch: Any, number: int) -> None:
        """Raise EvaluationError if what was gathered up to this batch is no number."""
        power = [moments.power() for moments in self.moments.values()]
        if power and not usable(torch.stack([p.to(power[0].device) for p in power])):
            first = next(name for name, p in zip(self.moments, power, strict=True) if not usable(p))
            raise unusable(batch, number, first)

    def results(self) -> dict[str, LayerGram]:
        """What was gathered, in single precision in host memory."""
        found = {}
        for name, moments in self.moments.items():
            found[name] = LayerGram(
                self._products[name],
                tuple(self._tensors[name].shape[2:]),
                moments.covariance().float().cpu(),
                (moments.total / moments.rows).float().cpu(),
                name in self.normalised,
            )
        return found
