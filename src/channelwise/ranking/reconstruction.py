"""Channel importance by what least squares cannot recover: the second-order error of the layers that read a channel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from channelwise.errors import InvalidArgumentError
from channelwise.ranking.weight_norms import l2
from channelwise.ranking.weights import Weights
from channelwise.statistics.grams import Grams, LayerGram, gather
from channelwise.statistics.moments import damped_factor
from channelwise.structure import Group, Slots, Structure

_RIDGE = 1e-3
STEPS = 128
"""Wide groups are eliminated several channels at a time, in about so many steps."""


class Reconstruction:
    """Ranks channels by the error that stays when the layers reading them are re-fitted on calibration images.

    Channels of a group are eliminated one after the other, always the one whose loss the remaining ones make good
    best; the score of a channel is the error at its elimination, relative to the variance of each output and added up
    over all outputs of all layers that read the channel. Removing by least error and re-fitting is optimal brain
    surgery (Hassibi & Stork 1993) with the layer-wise quadratic error (Dong et al. 2017, arXiv:1705.07565) for blocks
    of weights. Scores may be compared between groups.

    Arguments:
        loader: calibration images, see `channelwise.inputs.batches`; no labels are needed. None if ``grams`` is given.
        grams: what `channelwise.statistics.gather` returned for the same model, to save the pass over the images.
    """

    __name__ = "reconstruction"
    comparable = True

    def __init__(
        self, loader: Any = None, batches: int | None = None, *, forward_fn: Any = None, grams: Grams | None = None
    ) -> None:
        if (loader is None) == (grams is None):
            raise InvalidArgumentError("Reconstruction needs either a loader of calibration images or grams.")
        self._loader, self._batches, self._forward_fn, self._grams = loader, batches, forward_fn, grams

    def bind(self, model: nn.Module | None, structure: Structure) -> BoundReconstruction:
        """The criterion for one model. Raises InvalidArgumentError without a model."""
        grams = self._grams
        if grams is None:
            if model is None:
                raise InvalidArgumentError("The ranking 'reconstruction' needs the model: use graph.select(...).")
            grams = gather(model, structure, self._loader, self._batches, forward_fn=self._forward_fn)
        return BoundReconstruction(grams)

    def __call__(self, group: Group, tensors: Mapping[str, Tensor]) -> np.ndarray:
        if self._grams is None:
            raise InvalidArgumentError(
                "The ranking 'reconstruction' has not seen the model yet: use graph.select(..., ranking=...)."
            )
        return BoundReconstruction(self._grams)(group, tensors)


class BoundReconstruction:
    """The criterion with the moments of the model's layers."""

    __name__ = "reconstruction"
    comparable = True

    def __init__(self, grams: Grams) -> None:
        self._grams = grams
        self._known: dict[str, np.ndarray] = {}

    def __call__(self, group: Group, tensors: Mapping[str, Tensor]) -> np.ndarray:
        if group.name not in self._known:
            readers = _readers(group, Weights.of(tensors), self._grams)
            self._known[group.name] = _eliminate(group, readers) if readers else _share(group, tensors)
        return self._known[group.name]


@dataclass(eq=False)
class _Reader:
    """One part of a layer that reads the group.

    ``inverse`` (features, features) is the inverse Gram matrix of the features still there, ``weights`` (features,
    outputs) the re-fitted weights in units of the outputs' deviation. Row c of ``features``
    are those of ``channels[c]``.
    """

    inverse: Tensor
    weights: Tensor
    channels: np.ndarray
    features: Tensor

    def errors(self, alive: np.ndarray) -> Tensor:
        """The error of eliminating each channel, of those that the part reads and that are ``alive``."""
        of = self.features[torch.from_numpy(alive[self.channels])]
        block = self.inverse[of[:, :, None], of[:, None, :]]
        weights = self.weights[of]
        return (weights * torch.linalg.solve(block, weights)).sum((1, 2))

    def eliminate(self, gone: np.ndarray) -> None:
        """Take the channels of a mask away and let the other features make good what they can."""
        lost = self.features[torch.from_numpy(gone[self.channels])].flatten()
        if not len(lost):
            return
        block = self.inverse[lost][:, lost]
        columns = self.inverse[:, lost]
        self.weights -= columns @ torch.linalg.solve(block, self.weights[lost])
        self.inverse -= columns @ torch.linalg.solve(block, columns.T)


def _readers(group: Group, weights: Weights, grams: Grams) -> list[_Reader]:
    found = []
    for slots in group.slots:
        if slots.role == "input" and slots.tensor in grams.layers:
            layer = grams.layers[slots.tensor]
            found += _parts(slots, layer, layer.product.matrix(weights[slots.tensor].detach().cpu().double()))
    return found


def _parts(slots: Slots, layer: LayerGram, matrix: Tensor) -> list[_Reader]:
    """The parts of a layer that read the group: a part of a grouped convolution reads only some of the channels."""
    groups, features, _ = matrix.shape
    kernel = int(torch.Size(layer.kernel).numel())
    per_part = features // kernel
    # Slots count the input channels of all parts, in a transposed convolution as elsewhere.
    part, within = np.divmod(slots.index, per_part)
    readers = []
    for number in range(groups):
        inside = part == number
        channels = np.flatnonzero(inside.any(axis=1))
        counts = inside[channels].sum(axis=1)
        # A channel that a part reads in more places than it reads others would need rows of unequal length.
        if not len(channels) or len(set(counts.tolist())) > 1:
            continue
        places = within[channels][inside[channels]].reshape(len(channels), -1)
        of = (places[:, :, None] * kernel + np.arange(kernel)).reshape(len(channels), -1)
        gram = layer.gram(number)
        variance = torch.einsum("fo,fg,go->o", matrix[number], gram, matrix[number])
        inverse = torch.cholesky_inverse(damped_factor(gram, _RIDGE))
        scaled = matrix[number] * variance.clamp_min(1e-8 * variance.mean()).clamp_min(1e-30).rsqrt()
        readers.append(_Reader(inverse, scaled, channels, torch.from_numpy(of)))
    return readers


def _eliminate(group: Group, readers: list[_Reader]) -> np.ndarray:
    """Scores: the error at which a channel goes. The last one of all goes at twice the error of the one before."""
    alive = np.ones(group.size, bool)
    scores = np.zeros(group.size)
    at_a_time = -(-group.size // STEPS)
    level = 0.0
    while alive.sum() > 1:
        errors = np.zeros(group.size)
        for reader in readers:
            errors[reader.channels[alive[reader.channels]]] += reader.errors(alive).numpy()
        # Only of those still there, whatever the errors are: every round leaves fewer.
        left = np.flatnonzero(alive)
        going = left[np.argsort(errors[left], kind="stable")][: min(at_a_time, len(left) - 1)]
        gone = np.zeros(group.size, bool)
        gone[going] = True
        for channel in going:
            # What a channel costs cannot fall when there are fewer others; rounding and summing up could make it.
            level = scores[channel] = max(level * (1 + 1e-9), float(errors[channel]))
        alive &= ~gone
        for reader in readers:
            reader.eliminate(gone)
    scores[alive] = 2 * level
    return scores


def _share(group: Group, tensors: Mapping[str, Tensor]) -> np.ndarray:
    """For channels that no layer with moments reads: the share of the group's squared weights."""
    squares = l2(group, tensors) ** 2
    total = squares.sum()
    return squares / total if total else squares
