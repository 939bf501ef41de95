"""Compensation layer by layer: every layer of the slim model is re-fitted on the inputs it really gets."""

from __future__ import annotations

import logging
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import isfinite
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from channelwise.api import ChannelGraph
from channelwise.errors import InvalidArgumentError
from channelwise.inputs.batches import batches_of, forward, samples_in
from channelwise.inputs.check import describe
from channelwise.recovery.batchnorm import Pool, tracks_statistics, write_statistics
from channelwise.recovery.least_squares import RIDGES, improved, validated
from channelwise.recovery.lockstep import PausingPass
from channelwise.recovery.slim_matrix import Origin, origins
from channelwise.selection import Selection
from channelwise.statistics.finite import unusable, usable
from channelwise.statistics.grams import POSITIONS, NormalisedWatch, choose_rows
from channelwise.statistics.memory import free_bytes
from channelwise.statistics.moments import Moments
from channelwise.statistics.norms import NormInputs, inputs_of_norms, pair
from channelwise.statistics.products import Product, ProductWatch, batch_norm_call
from channelwise.surgery.clone import clone_module
from channelwise.surgery.cuts import Cut, cut_tensors
from channelwise.surgery.slim import check_slim, own_parameters
from channelwise.tensors import named_tensors

log = logging.getLogger(__name__)

_RUNNING_MEAN = ".running_mean"
HELD_OUT = 4
"""Of so many samples one is held out, to see what a fit to the others is worth."""


def compensate(
    slim: nn.Module,
    graph: ChannelGraph,
    selection: Selection,
    loader: Any,
    batches: int | None = None,
    *,
    forward_fn: Any = None,
    positions: int = POSITIONS,
    ridge: float | None = None,
    paired_statistics: bool = False,
    memory: int | None = None,
) -> nn.Module:
    """Re-fit the weights of ``slim`` so that every layer's output on calibration images is that of the dense model.

    From the first layer to the last, a layer's weights are the regularised least-squares answer to the outputs that
    the dense model has there, given the inputs that the slim model has there now (ThiNet, arXiv:1707.06342, and He
    et al., arXiv:1707.06168, one layer at a time). Every fourth sample is held out to see how far a fit to the others
    serves them, and a fit to all goes as far: a layer with more inputs than the images can tell apart stays as it is.
    Batch norms on the way get the statistics of all samples. Errors do not add up, and no separate batch-norm
    re-estimation is needed. All batches advance together, which costs one forward pass of both models and the memory of
    their activations.

    Arguments:
        slim: made by ``graph.slim(selection)``; changed in place and returned. ``graph.model`` is not touched.
        loader: calibration images, see `channelwise.inputs.batches`; a thousand is a good number, without labels.
        positions: how many output positions of a sample are looked at, chosen at random.
        ridge: pull towards the weights as they are, relative to the mean power of a layer's inputs; None: of several,
            the one that serves best the samples that are held out.
        paired_statistics: whether the statistics of batch norms are the dense model's, changed by what pruning changes
            on the images (`channelwise.statistics.norms.paired`): few images then cost less, and nothing where little
            was pruned. Costs another pass of the dense model.
        memory: bytes that activations may take; by default half of what is free on the device. Later batches that do
            not fit are left out, which is logged.

    Raises:
        InvalidArgumentError: the loader yields nothing usable.
        EvaluationError: a layer reads NaN, infinity or numbers too large on a batch; it names the batch.
    """
    if not isinstance(slim, nn.Module) or not isinstance(graph, ChannelGraph):
        raise InvalidArgumentError(
            f"compensate takes (slim, graph, selection, loader), not {describe(slim)} and {describe(graph)}: "
            "slim = graph.slim(selection), graph = channelwise.trace(model, inputs)."
        )
    structure, model = graph.structure, graph.model
    check_slim(slim, structure, selection)
    given = list(batches_of(loader, batches))
    cuts = cut_tensors(structure, selection).tensors
    own_parameters(slim, model, dict(slim.named_parameters(remove_duplicate=False)))
    training = [(m, m.training) for m in slim.modules()]
    backup = [(t, t.detach().clone()) for t in named_tensors(slim).values()]
    slim.eval()
    try:
        with torch.no_grad():
            dense = clone_module(model, {id(t): t for t in model.parameters()}).eval()
            probe = _Probe(dense)
            with probe:
                forward(dense, given[0], forward_fn)
            room = free_bytes(probe.device) // 2 if memory is None else memory
            # Two passes, the dense model's and one that is no larger; half as much lies between products, as measured.
            most = max(1, int(room // max(3 * probe.held + probe.largest, 1)))
            if most < len(given):
                log.warning("compensate uses %d of %d batches: the activations of more do not fit into memory.",
                            most, len(given))  # fmt: skip
            ridges = RIDGES if ridge is None else [ridge]
            sweep = _Sweep(slim, dense, cuts, probe.normalised, probe.repeated, positions, ridges)
            if paired_statistics:
                sweep.dense_norms = inputs_of_norms(dense, given[:most], forward_fn)
            sweep.run(given[:most], forward_fn)
    except BaseException as error:
        with torch.no_grad():
            for tensor, value in backup:
                tensor.copy_(value)
        if isinstance(error, _Diverged):
            raise InvalidArgumentError(
                f"{type(model).__name__} does not run the same layers in the same order for every batch (at {error}), "
                "so its batches cannot be compensated together. Give batches that take the same path, or use "
                "compensate_from_grams and recalibrate."
            ) from error
        raise
    finally:
        for module, flag in training:
            module.training = flag
    return slim


class _Probe(NormalisedWatch):
    """Finds the products that a batch norm follows or that run repeatedly, and what activations take.

    ``largest``: bytes of the largest. ``held``: of all that are there at a time, of those that products read and give.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__({id(t): name for name, t in model.named_parameters()})
        self.largest = self.held = 0
        self._seen: list[weakref.ref[Tensor]] = []
        self.calls: Counter[str] = Counter()
        self.device = torch.device("cpu")

    def product(self, product: Product, x: Tensor, compute: Any) -> Tensor:
        y: Tensor = compute()
        self.remember(y, product.weight)
        self.calls[product.weight] += 1
        self.device = y.device
        self._seen = [one for one in [*self._seen, weakref.ref(x), weakref.ref(y)] if one() is not None]
        storages = [t.untyped_storage() for one in self._seen if (t := one()) is not None]
        bytes_of = {storage.data_ptr(): storage.nbytes() for storage in storages}
        self.largest = max(self.largest, *bytes_of.values())
        self.held = max(self.held, sum(bytes_of.values()))
        return y

    @property
    def repeated(self) -> set[str]:
        return {name for name, count in self.calls.items() if count > 1}


@dataclass(frozen=True, eq=False)
class _Event:
    """Where a pass stands: at the layer with this tensor, and the activation there."""

    tensor: str
    values: Tensor
    product: Product | None = None


class _Watch(ProductWatch):
    """Pauses a pass at products."""

    def __init__(self, names: Mapping[int, str], current: PausingPass) -> None:
        super().__init__(names)
        self._pause = current.pause


class _SlimWatch(_Watch):
    """Pauses before every product and before every batch norm with running statistics."""

    def product(self, product: Product, x: Tensor, compute: Any) -> Tensor:
        self._pause(_Event(product.weight, x, product))
        return compute()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        norm = batch_norm_call(func, args, kwargs)
        if norm is not None and (name := self.names.get(id(norm[1]))):
            self._pause(_Event(name, norm[0]))
        return super().__torch_function__(func, types, args, kwargs)


class _DenseWatch(_Watch):
    """Pauses behind every product."""

    def product(self, product: Product, x: Tensor, compute: Any) -> Tensor:
        y: Tensor = compute()
        self._pause(_Event(product.weight, y, product))
        return y


class _Sweep:
    """All batches through both models at once, from layer to layer."""

    def __init__(
        self,
        slim: nn.Module,
        dense: nn.Module,
        cuts: Mapping[str, Cut],
        normalised: set[str],
        repeated: set[str],
        positions: int,
        ridges: Sequence[float],
    ) -> None:
        self._slim, self._dense = slim, dense
        self._cuts, self._normalised = cuts, normalised
        self._positions, self._ridges = positions, ridges
        self._tensors = named_tensors(slim)
        self._repeated = repeated
        self._pools: dict[str, Pool] = {}
        self.dense_norms: Mapping[str, NormInputs] = {}
        self._batches: Sequence[Any] = ()
        self._samples: Sequence[int] = ()
        self._generator = torch.Generator().manual_seed(0)

    def run(self, batches: Sequence[Any], forward_fn: Any) -> None:
        self._batches = batches
        self._samples = [samples_in(batch) for batch in batches]
        with ExitStack() as ends:
            slim = [self._start(ends, self._slim, _SlimWatch, batch, forward_fn) for batch in batches]
            dense = [self._start(ends, self._dense, _DenseWatch, batch, forward_fn) for batch in batches]
            _advance(slim)
            while (event := _common(slim)) is not None:
                if event.product is None:
                    self._renormalise(event.tensor, [p.event.values for p in slim])
                else:
                    _advance(dense)
                    self._refit(event.product, slim, dense)
                _advance(slim)

    def _start(self, ends: ExitStack, model: nn.Module, watch: type[_Watch], batch: Any, fn: Any) -> PausingPass:
        # Modules may keep activations as attributes, so every batch gets modules of its own around the same tensors.
        twin = clone_module(model, {id(t): t for t in [*model.parameters(), *model.buffers()]})
        names = {id(t): name for name, t in twin.named_parameters()}
        norms = {name: m for name, m in twin.named_modules() if isinstance(m, _BatchNorm) and tracks_statistics(m)}
        names |= {id(norm.running_mean): name + _RUNNING_MEAN for name, norm in norms.items()}

        def function(current: PausingPass) -> None:
            with watch(names, current):
                forward(twin, batch, fn)

        started = PausingPass(function)
        ends.callback(started.stop)
        return started

    def _renormalise(self, name: str, values: Sequence[Tensor]) -> None:
        """Set the statistics of the batch norm with the running mean ``name`` to those of all samples."""
        owner = name.removesuffix(_RUNNING_MEAN)
        norm: Any = self._slim.get_submodule(owner)
        if name not in self._pools:
            self._pools[name] = Pool([norm])
        pool = self._pools[name]
        for x in values:
            pool.add(0, x, 1)
        pool.flush()
        write_statistics(type(self._slim).__name__, {owner: norm}, pool)
        if self.dense_norms:
            dense: Any = self._dense.get_submodule(owner)
            pair(norm, dense, self._cuts.get(name), NormInputs.of(values), self.dense_norms.get(owner))

    def _refit(self, product: Product, slim: Sequence[PausingPass], dense: Sequence[PausingPass]) -> None:
        """Re-fit the layer that all passes have reached."""
        name = product.weight
        if name in self._repeated:
            return
        weight = self._tensors[name]
        fit: Moments | None = None
        where: list[Origin] | None = None
        first = 0
        for narrow, wide, samples in zip(slim, dense, self._samples, strict=True):
            if wide.event is None or wide.event.tensor != name:
                raise _Diverged(name)
            x, y, full = narrow.event.values, wide.event.values, wide.event.product
            if where is None and name in self._cuts:
                where = origins(full, product, self._cuts[name])
            chosen = choose_rows(full, y, x.shape[0] if x.dim() > 1 else 1, self._positions, self._generator)
            rows, outputs = product.rows(x, tuple(weight.shape[2:]), chosen), full.outputs(y, chosen)
            if where is not None:
                outputs = torch.stack([outputs[origin.part][:, origin.outputs.to(y.device)] for origin in where])
            if fit is None:
                fit, held = (Moments.zeros(len(rows), rows.shape[2], outputs.shape[2], x.device) for _ in range(2))
            # Rows come sample by sample.
            row = torch.arange(rows.shape[1], device=y.device) if chosen is None else chosen
            is_held = (first + row * samples // full.row_count(y)) % HELD_OUT == HELD_OUT - 1
            fit.add(rows[:, ~is_held], outputs[:, ~is_held])
            held.add(rows[:, is_held], outputs[:, is_held])
            first += samples
        assert fit is not None
        moments = fit + held
        assert moments.target is not None
        assert moments.cross is not None
        if not usable(torch.stack([moments.power(), moments.cross.abs().max()])):
            self._blame(name, slim)
        free_offset = product.bias is not None or name in self._normalised
        start = product.matrix(weight).to(moments.gram.dtype)
        whole = moments.equation(start, free_offset=free_offset)
        if held.rows and fit.rows:
            fit_equation, held_equation = (m.equation(start, free_offset=free_offset) for m in (fit, held))
            fitted = validated(start, fit_equation, held_equation, whole, self._ridges)
        else:
            fitted = improved(start, *whole)
        weight.copy_(product.weight_of(fitted, weight.shape))
        if product.bias is not None:
            reached = (moments.total.unsqueeze(1) @ fitted).squeeze(1)
            self._tensors[product.bias].copy_(((moments.target - reached) / moments.rows).flatten())

    def _blame(self, weight: str, slim: Sequence[PausingPass]) -> NoReturn:
        """Raise EvaluationError for the first batch on which the layer reads what is no number, else the largest."""
        largest = [float(one.event.values.abs().max()) if one.event is not None else 0.0 for one in slim]
        number = next((i for i, value in enumerate(largest) if not isfinite(value)), largest.index(max(largest)))
        raise unusable(self._batches[number], number, weight)


class _Diverged(Exception):
    """The passes of slim and dense model, or of two batches, do not call the same layers in the same order."""


def _advance(passes: Sequence[PausingPass]) -> None:
    for one in passes:
        one.advance()


def _common(passes: Sequence[PausingPass]) -> _Event | None:
    """The event at which all passes stand, None when all are done."""
    found = {(p.event.tensor, p.event.product is None) if p.event else None for p in passes}
    if len(found) > 1:
        raise _Diverged(", ".join(sorted(map(str, found))))
    event: _Event | None = passes[0].event
    return event
