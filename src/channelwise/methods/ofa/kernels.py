"""Elastic kernels: a 7x7 convolution that can run as 5x5 or 3x3 (Cai et al., Once-for-All, ICLR 2020, section 3.3)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import nn

SMALLEST = 3


def kernel_candidates(conv: nn.Module) -> tuple[int, ...]:
    """The sides a kernel can have, ascending: all odd ones from 3 on if it is square, odd and larger; else one or none.

    The padding must shrink with the kernel, so that the output keeps its size.
    """
    if type(conv) is not nn.Conv2d or conv.kernel_size[0] != conv.kernel_size[1]:
        return ()
    side, dilation = conv.kernel_size[0], conv.dilation
    lost = (side - SMALLEST) // 2
    padded = isinstance(conv.padding, str) and conv.padding == "same"
    if not isinstance(conv.padding, str):
        padded = all(p >= lost * d for p, d in zip(conv.padding, dilation, strict=True))
    if (
        side % 2 == 0
        or side <= SMALLEST
        or not padded
        or conv.padding_mode != "zeros"
        or "weight" not in conv._parameters
    ):
        return (side,)
    return tuple(range(SMALLEST, side + 1, 2))


class ElasticKernel:
    """A convolution whose kernel may be the middle of the full one, through learned matrices (identity at first)."""

    elastic_sides: tuple[int, ...] = ()

    def add_matrices(self, sides: tuple[int, ...]) -> None:
        """Parameters such as ``7to5_matrix`` (25, 25), from each side to the next smaller one."""
        conv: Any = self
        self.elastic_sides = tuple(sides)
        for small, large in pairwise(sides):
            matrix = torch.eye(small**2, device=conv.weight.device, dtype=conv.weight.dtype)
            conv.register_parameter(_matrix_name(large, small), nn.Parameter(matrix))

    def remove_matrices(self) -> None:
        """The opposite of `add_matrices`."""
        conv: Any = self
        for small, large in pairwise(self.elastic_sides):
            del conv._parameters[_matrix_name(large, small)]
        conv.__dict__.pop("elastic_sides", None)

    def shrunk(self, weight: Any) -> Any:
        """The weight (O, I, K, K) with the kernel that is active, (O, I, k, k)."""
        conv: Any = self
        if not self.elastic_sides:
            return weight
        active = conv.kernel_size[0]
        for small, large in reversed(list(pairwise(self.elastic_sides))):
            matrix = getattr(conv, _matrix_name(large, small))
            if large > active:
                border = (large - small) // 2
                middle = weight[..., border : border + small, border : border + small]
                weight = (middle.flatten(2) @ matrix.T).unflatten(2, (small, small))
            elif torch.is_grad_enabled() and matrix.requires_grad:
                # Distributed training waits for a gradient of every parameter: of an unused matrix it is zero.
                weight = weight + 0.0 * matrix.sum()
        return weight

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool, *others: Any
    ) -> None:
        # Checkpoints of the original network have no matrices: its kernels are the middle ones, unchanged.
        conv: Any = self
        names = [_matrix_name(large, small) for small, large in pairwise(self.elastic_sides)]
        if not any(prefix + name in state_dict for name in names):
            added = {prefix + name: _identity(conv._parameters[name]) for name in names}
            state_dict = {**state_dict, **added}
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *others)  # type: ignore[misc]


def _identity(matrix: torch.Tensor) -> torch.Tensor:
    return torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)


def _matrix_name(large: int, small: int) -> str:
    return f"{large}to{small}_matrix"
