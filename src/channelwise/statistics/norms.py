"""What batch norms see of every sample, and what statistics of a slim model follow from those of the dense one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from channelwise.inputs.batches import ForwardFn, forward
from channelwise.surgery.cuts import Cut
from channelwise.tensors import at_least_single

_SMALL = 1e-12


@dataclass(frozen=True, eq=False)
class NormInputs:
    """Of what a batch norm saw of every sample: ``mean`` (samples, channels), and the mean ``square`` about it."""

    mean: Tensor
    square: Tensor

    @classmethod
    def of(cls, inputs: Iterable[Tensor], axis: int = 1) -> NormInputs:
        """Of inputs (N, …), one batch after another; ``axis`` is that of the channels."""
        flat = [at_least_single(x.detach()).movedim(axis, 1).reshape(len(x), x.shape[axis], -1) for x in inputs]
        return cls(torch.cat([x.mean(2) for x in flat]), torch.cat([x.var(2, correction=0) for x in flat]))

    @classmethod
    def joined(cls, parts: Sequence[NormInputs]) -> NormInputs:
        """Those of all samples of the parts."""
        return cls(torch.cat([one.mean for one in parts]), torch.cat([one.square for one in parts]))

    def pooled(self) -> tuple[Tensor, Tensor]:
        """Mean and variance (channels,) of all that was seen."""
        variance = self.square.mean(0) + self.mean.var(0, correction=0)
        return self.mean.mean(0), variance.clamp_min(_SMALL)


def inputs_of_norms(
    model: nn.Module, batches: Sequence[Any], forward_fn: ForwardFn | None = None
) -> dict[str, NormInputs]:
    """What every batch norm of a model sees of these batches, in the mode that the model is in; by name."""
    seen: dict[str, list[NormInputs]] = defaultdict(list)
    handles = [
        norm.register_forward_pre_hook(lambda _, args, name=name: seen[name].append(NormInputs.of(args[:1])))
        for name, norm in model.named_modules()
        if isinstance(norm, _BatchNorm)
    ]
    try:
        with torch.no_grad():
            for batch in batches:
                forward(model, batch, forward_fn)
    finally:
        for handle in handles:
            handle.remove()
    return {name: NormInputs.joined(its) for name, its in seen.items()}


def paired(slim: NormInputs, dense: NormInputs, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (channels,) of a slim model's batch norm from its samples and the dense model's.

    ``mean`` and ``variance`` are the dense model's own, from all of its training. What a few samples miss of them, the
    slim model's samples miss in proportion, as far as they vary with the dense model's (control variates; variances by
    their ratio). A model compared with itself gets its own statistics back.
    """
    (m, v), (dense_m, dense_v) = slim.pooled(), dense.pooled()
    a, b = slim.mean - m, dense.mean - dense_m
    slope = (a * b).sum(0) / b.square().sum(0).clamp_min(_SMALL)
    a, b = (slim.square + a.square()) / v - 1, (dense.square + b.square()) / dense_v - 1
    power = (a * b).sum(0) / b.square().sum(0).clamp_min(_SMALL)
    return m - slope * (dense_m - mean), v * (variance.clamp_min(_SMALL) / dense_v) ** power


def pair(norm: Any, dense: Any, cut: Cut | None, slim_inputs: NormInputs, dense_inputs: NormInputs | None) -> None:
    """Write `paired` statistics into a slim model's batch norm, cut by ``cut`` from that of the dense model.

    Where the two did not see as many samples, it stays as it is.
    """
    if dense_inputs is None or len(slim_inputs.mean) != len(dense_inputs.mean):
        return
    channels: Any = slice(None) if cut is None or 0 not in cut.kept else torch.as_tensor(cut.kept[0])
    inputs = NormInputs(dense_inputs.mean[:, channels], dense_inputs.square[:, channels])
    mean, variance = paired(slim_inputs, inputs, dense.running_mean[channels], dense.running_var[channels])
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
