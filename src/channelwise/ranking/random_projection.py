"""A loss without labels for gradient rankings: how far the network's outputs move."""

from __future__ import annotations

from typing import Any

import torch

from channelwise.errors import InvalidArgumentError
from channelwise.inputs.tree import tensors_in


class RandomProjection:
    """The outputs times fixed noise: ``Fisher(RandomProjection(), loader)`` ranks by how far the outputs move.

    The mean square of the gradient of a random projection is the diagonal of the Gauss-Newton matrix of the squared
    change of the outputs (Hutchinson's estimator), here relative to each output's deviation. It needs no labels and
    no idea of what the outputs mean. Noise is drawn in the same order from the same seed.
    """

    __name__ = "random projection of the outputs"

    def __init__(self, seed: int = 0) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, outputs: Any, *_: Any) -> torch.Tensor:
        """A tensor of one element, a mean over the samples along the outputs' first axis."""
        terms = [self._term(t) for t in tensors_in(outputs) if t.requires_grad and t.is_floating_point()]
        if not terms:
            raise InvalidArgumentError(
                "No output of the model that is a tensor of floating point numbers depends on its weights; give "
                "forward_fn=, which returns outputs."
            )
        return torch.stack(terms).sum()

    def _term(self, output: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(output.shape, generator=self._generator).to(output.device)
        values = output.float()
        deviation = values.detach().std(unbiased=False).clamp_min(1e-12)
        return (values / deviation * noise).sum() / (len(output) if output.dim() else 1)
