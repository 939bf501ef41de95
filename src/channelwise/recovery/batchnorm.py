"""Batch-norm statistics re-estimated: the exact mean and variance of what each batch norm sees over some batches."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from channelwise.api import ChannelGraph
from channelwise.errors import EvaluationError, InvalidArgumentError
from channelwise.inputs.batches import ForwardFn, batches_of, evaluating, forward
from channelwise.inputs.check import unwrap
from channelwise.selection import Selection
from channelwise.statistics.norms import NormInputs, pair
from channelwise.surgery.clone import clone_module
from channelwise.surgery.cuts import Cut, cut_tensors
from channelwise.surgery.slim import check_slim
from channelwise.tensors import at_least_single, widest

log = logging.getLogger(__name__)

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def recalibrate(
    model: nn.Module,
    loader: Any,
    batches: int | None = None,
    *,
    forward_fn: ForwardFn | None = None,
    graph: ChannelGraph | None = None,
    selection: Selection | None = None,
) -> nn.Module:
    """Re-estimate the statistics of all batch norms, in place: what a pruned network needs first.

    While the model runs, each batch norm normalises with the statistics of the batch, all else is in eval mode
    (dropout is off). Afterwards ``running_mean`` and ``running_var`` are the mean and the unbiased variance of
    everything that the batch norm saw, as if it had been one batch; no moving average, and any number of batches of any
    sizes (EagleEye, Li et al., ECCV 2020). Nothing else changes: training flags, ``momentum``,
    ``num_batches_tracked``, weights and gradients are what they were; after an error the statistics are, too.

    Runs under the caller's autocast; sums are kept in float32 and pooled in float64. When ``torch.distributed`` is
    initialised, every process has to call this with its share of the data; all get the statistics of all data.

    A batch norm that gets one value per channel, such as one behind global pooling in a batch of one sample, counts
    it but normalises with its old statistics, as it has to. Batch norms that do not run on these batches, and those
    without running statistics, stay as they are. In a supernet, the channels of the active subnet are re-estimated.

    Args:
        model: The model; its batch norms are written to. Wrappers such as DistributedDataParallel may stay on.
        loader: Yields tensors, ``(inputs, targets)`` or dicts; see ``forward_fn`` for anything else. A thousand images
            are usually enough; batches of 32 and more are best. Shuffled data matters: batches of one class mislead.
        batches: How many batches to read at most; None for all.
        forward_fn: Called as ``forward_fn(model, batch)``, with the batch on the model's device.
        graph, selection: Give both for a slim model, ``graph.slim(selection)``. Its statistics are then those of the
            dense model, changed by what pruning changes on the batches (`channelwise.statistics.norms.paired`): they
            need fewer images, and cost nothing where nothing was pruned. Takes another pass of the dense model.

    Returns:
        ``model`` itself.

    Raises:
        InvalidArgumentError: the loader yields nothing, a batch does not fit the model, or a batch norm saw fewer than
            two values per channel.
        EvaluationError: a batch norm saw NaN or infinity.
    """
    inner = unwrap(model)
    if graph is None and selection is None:
        reestimate(inner, batches_of(loader, batches), forward_fn)
        return model
    if not isinstance(graph, ChannelGraph) or not isinstance(selection, Selection):
        raise InvalidArgumentError("recalibrate takes graph= and selection= together: those that the slim model is of.")
    check_slim(inner, graph.structure, selection)
    # Read once: a loader that shuffles would give the two models other batches.
    given = list(batches_of(loader, batches))
    cuts = cut_tensors(graph.structure, selection).tensors
    reestimate_beside(inner, graph.model, cuts, inputs_in_training(graph.model, given, forward_fn), given, forward_fn)
    return model


Kept = dict[str, list[NormInputs]]
"""What batch norms saw of every sample, by their names."""


def reestimate(
    model: nn.Module, batches: Iterable[Any], forward_fn: ForwardFn | None = None, kept: Kept | None = None
) -> None:
    """`recalibrate` without the dense model; what the batch norms saw goes into ``kept``."""
    norms = {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm) and tracks_statistics(m)}
    if not norms:
        _say_once(f"{type(model).__name__} has no batch norm with running statistics: there is nothing to re-estimate.")
        return
    pool = Pool(list(norms.values()))
    lists = [None if kept is None else kept.setdefault(name, []) for name in norms]
    with torch.no_grad(), evaluating(model), _observed(list(norms.values()), pool, lists):
        for batch in batches:
            forward(model, batch, forward_fn)
            pool.flush()
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            pool.reduce()
            if kept is not None:
                _gather(kept)
    write_statistics(type(model).__name__, norms, pool)


def inputs_in_training(
    model: nn.Module, batches: Iterable[Any], forward_fn: ForwardFn | None = None
) -> dict[str, NormInputs]:
    """What every batch norm of a model sees of every sample while all normalise with their batches; by name."""
    kept: Kept = {}
    reestimate(clone_module(model, {id(p): p for p in model.parameters()}), batches, forward_fn, kept)
    return {name: NormInputs.joined(parts) for name, parts in kept.items() if parts}


def reestimate_beside(
    slim: nn.Module, dense: nn.Module, cuts: Mapping[str, Cut], dense_inputs: Mapping[str, NormInputs],
    batches: Iterable[Any], forward_fn: ForwardFn | None = None,
) -> None:  # fmt: skip
    """`recalibrate` with the dense model, whose inputs of batch norms on the same batches are known.

    Args:
        cuts: how the slim model was cut, see `channelwise.surgery.cuts.cut_tensors`.
    """
    kept: Kept = {}
    reestimate(slim, batches, forward_fn, kept)
    for name, parts in kept.items():
        if parts and name in dense_inputs:
            wide: Any = dense.get_submodule(name)
            cut = cuts.get(f"{name}.running_mean")
            pair(slim.get_submodule(name), wide, cut, NormInputs.joined(parts), dense_inputs[name])


def _gather(kept: Kept) -> None:
    """Those of all processes, in the order of their ranks."""
    all_kept: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(all_kept, kept)
    for name in kept:
        device = kept[name][0].mean.device if kept[name] else None
        kept[name][:] = [
            NormInputs(one.mean.to(device), one.square.to(device)) for other in all_kept for one in other[name]
        ]


class Pool:
    """Count, mean and sum of squares about the mean of the inputs of every channel of some batch norms.

    Laid out one batch norm after the other, so that a batch is pooled with a few operations for all of them.
    """

    def __init__(self, norms: Sequence[Any]) -> None:
        buffers: list[Any] = [n.active("running_mean") if is_dynamic(n) else n.running_mean for n in norms]
        self.sizes = [buffer.numel() for buffer in buffers if buffer is not None]
        self._device = next(buffer.device for buffer in buffers if buffer is not None)
        self.count, self.mean, self.squares = torch.zeros(
            3, sum(self.sizes), dtype=widest(self._device), device=self._device
        )
        self._channels = torch.tensor(self.sizes, device=self._device)
        self._nothing = torch.zeros(max(self.sizes), device=self._device)
        self._pending: dict[int, tuple[int, Tensor, Tensor]] = {}

    def add(self, index: int, x: Tensor, axis: int) -> None:
        """Count in the input of a batch norm; ``axis`` is that of its channels."""
        if index in self._pending:
            self.flush()
        count = x.numel() // x.shape[axis]
        self._pending[index] = (count, *mean_and_squares(x, axis))

    def flush(self) -> None:
        """Pool what was added since the last time (Chan, Golub and LeVeque, 1979)."""
        if not self._pending:
            return
        absent = [(0, self._nothing[:size], self._nothing[:size]) for size in self.sizes]
        counts, means, squares = zip(
            *(self._pending.get(index, nothing) for index, nothing in enumerate(absent)), strict=True
        )
        self._pending.clear()
        added = self._spread(counts)
        total = (self.count + added).clamp_min(1)
        shift = self._joined(means) - self.mean
        self.squares += self._joined(squares) + shift.square() * (self.count * added / total)
        self.mean += shift * (added / total)
        self.count += added

    def reduce(self) -> None:
        """Pool over all processes, each of which has to call this."""
        back = self._device
        device = torch.device("cuda", torch.cuda.current_device()) if _only_cuda() and back.type == "cpu" else back
        count, mean, squares = (t.to(device) for t in (self.count, self.mean, self.squares))
        sums = torch.stack([count, count * mean])
        dist.all_reduce(sums)
        whole = sums[1] / sums[0].clamp_min(1)
        squares = squares + count * (mean - whole).square()
        dist.all_reduce(squares)
        self.count, self.mean, self.squares = sums[0].to(back), whole.to(back), squares.to(back)

    def _spread(self, counts: Sequence[int]) -> Tensor:
        return torch.tensor(counts, dtype=self.mean.dtype, device=self._device).repeat_interleave(
            self._channels, output_size=len(self.mean)
        )

    def _joined(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([part.to(self._device, self.mean.dtype) for part in parts])


def mean_and_squares(x: Tensor, axis: int = 1) -> tuple[Tensor, Tensor]:
    """Mean of every channel and sum of squares about it, in float32 at least; ``axis`` is that of the channels."""
    x = at_least_single(x.detach())
    others = [d for d in range(x.dim()) if d != axis % x.dim()]
    if x.device.type != "cpu":
        variance, mean = torch.var_mean(x, others, correction=0)
        return mean, variance * (x.numel() // x.shape[axis])
    # On CPUs var_mean is some ten times slower than two passes; the second corrects the rounding of the first.
    rough = x.mean(others, keepdim=True)
    rest = x - rough
    count = x.numel() // x.shape[axis]
    error = rest.sum(others).double() / count
    squares = rest.square_().sum(others) - count * error.square()
    return rough.flatten() + error, squares.clamp_min_(0)


def tracks_statistics(norm: _BatchNorm) -> bool:
    return norm.track_running_stats and norm.running_mean is not None and norm.running_var is not None


def is_dynamic(norm: Any) -> bool:
    """Whether this is a batch norm of a supernet, where only some channels are active."""
    return isinstance(getattr(norm, "_active", None), Mapping)


@contextmanager
def _observed(norms: Sequence[_BatchNorm], pool: Pool, kept: Sequence[list[NormInputs] | None]) -> Iterator[None]:
    """Batch norms in train mode, on copies of their buffers, their inputs counted; all as it was afterwards."""
    buffers = [{name: norm._buffers[name] for name in _BUFFERS if name in norm._buffers} for norm in norms]
    momenta = [norm.momentum for norm in norms]
    # The layers of a supernet name the class that they replace in _static.
    classes = [getattr(type(n), "_static", type(n)) if is_dynamic(n) else type(n) for n in norms]
    local = [
        norm
        for norm, cls in zip(norms, classes, strict=True)
        if cls.forward is nn.SyncBatchNorm.forward and "forward" not in norm.__dict__
    ]
    handles = []
    try:
        for index, norm in enumerate(norms):
            norm._buffers.update({k: None if b is None else b.clone() for k, b in buffers[index].items()})
            # The copies keep the old statistics, which are needed where a batch cannot have any.
            norm.momentum = 0.0
            norm.training = True
            hook = functools.partial(_count_in, pool, index, kept[index])
            handles.append(norm.register_forward_pre_hook(hook, with_kwargs=True))
        for sync in local:
            # Synchronised statistics of a batch would have all processes wait for the one with the most batches.
            sync.__dict__["forward"] = MethodType(_BatchNorm.forward, sync)
        yield
    finally:
        for handle in handles:
            handle.remove()
        for sync in local:
            sync.__dict__.pop("forward", None)
        for norm, own, momentum in zip(norms, buffers, momenta, strict=True):
            norm._buffers.update(own)
            norm.momentum = momentum


def _count_in(
    pool: Pool, index: int, kept: list[NormInputs] | None, norm: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    x = args[0] if args else next(iter(kwargs.values()))
    size = pool.sizes[index]
    # A subclass may take its channels last.
    axis = 1 if x.dim() > 1 and x.shape[1] == size else -1
    if x.shape[axis] != size:
        raise InvalidArgumentError(
            f"a {type(norm).__name__} of {size} channels got an input of shape {tuple(x.shape)}: its channels must be "
            "axis 1 or the last."
        )
    values = x.numel() // size
    # With one value per channel there is no variance, and torch refuses to normalise with it.
    norm.training = values > 1
    if values:
        pool.add(index, x, axis)
        if kept is not None:
            kept.append(NormInputs.of([x], axis))


def write_statistics(model: str, norms: Mapping[str, _BatchNorm], pool: Pool) -> None:
    """Pooled statistics into the buffers of ``norms``, the pool's by name, or an error before any is written.

    Args:
        model: What messages call the model.
    """
    counts = [int(count[0]) for count in pool.count.cpu().split(pool.sizes)]
    unseen = [name for name, count in zip(norms, counts, strict=True) if count == 0]
    if unseen:
        more = f" and {len(unseen) - 3} more" if len(unseen) > 3 else ""
        _say_once(f"{', '.join(unseen[:3])}{more} of {model} did not run on these batches: statistics kept.")
    variance = pool.squares / (pool.count - 1).clamp_min(1)
    largest = torch.stack([pool.mean.abs(), variance]).amax(0).cpu().split(pool.sizes)
    for name, norm, count, magnitude in zip(norms, norms.values(), counts, largest, strict=True):
        if count == 1:
            raise InvalidArgumentError(
                f"batch norm {name!r} saw a single value per channel, which has no variance. Give more samples."
            )
        assert norm.running_var is not None
        if not bool((magnitude <= torch.finfo(norm.running_var.dtype).max).all()):
            raise EvaluationError(
                f"the inputs of batch norm {name!r} held NaN or infinity (or too much for {norm.running_var.dtype}); "
                "its statistics were left as they were. Is every batch finite? Half precision may overflow."
            )
    parts: Any = zip(norms.values(), counts, pool.mean.split(pool.sizes), variance.split(pool.sizes), strict=True)
    with torch.no_grad():
        for norm, count, mean, var in parts:
            if count and is_dynamic(norm):
                norm.put("running_mean", mean)
                norm.put("running_var", var)
            elif count:
                assert norm.running_mean is not None
                assert norm.running_var is not None
                norm.running_mean.copy_(mean)
                norm.running_var.copy_(var)


def _only_cuda() -> bool:
    return str(dist.get_backend()) == "nccl"


@functools.cache
def _say_once(message: str) -> None:
    log.info(message)
