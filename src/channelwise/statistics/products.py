"""Convolutions and linear layers as matrix products: which rows of inputs meet which matrix of weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_CONVOLUTIONS = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}
_TRANSPOSED = {torch.conv_transpose1d: 1, torch.conv_transpose2d: 2, torch.conv_transpose3d: 3}
_CONVOLUTION_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_LINEAR_ARGUMENTS = ("input", "weight", "bias")


@dataclass(frozen=True, eq=False)
class Product:
    """One executed convolution or linear layer whose weight is a parameter of the model.

    As a matrix product it has ``groups`` independent parts: rows (groups, rows, features) times a matrix
    (groups, features, outputs). A row is one sample at one position of the output; a feature is one input channel at
    one kernel position.
    """

    weight: str
    bias: str | None
    groups: int = 1
    transposed: bool = False
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()

    @property
    def is_linear(self) -> bool:
        return not self.stride

    def matrix(self, weight: Tensor) -> Tensor:
        """``weight`` as (groups, features, outputs)."""
        if self.is_linear:
            return weight.t().unsqueeze(0)
        if self.transposed:
            blocks = weight.flip(*range(2, weight.dim())).unflatten(0, (self.groups, -1))
            return blocks.movedim(2, -1).flatten(1, -2)
        return weight.unflatten(0, (self.groups, -1)).flatten(2).transpose(1, 2)

    def weight_of(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of `matrix`, for a weight of ``shape``."""
        if self.is_linear:
            return matrix[0].t()
        if self.transposed:
            blocks = matrix.unflatten(1, (shape[0] // self.groups, *shape[2:])).movedim(-1, 2)
            return blocks.flatten(0, 1).flip(*range(2, len(shape)))
        return matrix.transpose(1, 2).reshape(shape)

    def rows(self, x: Tensor, kernel: tuple[int, ...], chosen: Tensor | None = None) -> Tensor:
        """What the matrix is multiplied with: (groups, rows, features), of the rows ``chosen`` or all.

        Arguments:
            x: The input, (N, C, ...) of a convolution (batched), (..., C) of a linear layer.
            kernel: The kernel's size, () for a linear layer.
        """
        if self.is_linear:
            flat = x.reshape(-1, x.shape[-1])
            return (flat if chosen is None else flat[chosen]).unsqueeze(0)
        x = self._prepared(x, kernel)
        stride = (1,) * len(kernel) if self.transposed else self.stride
        sizes = [(n - d * (k - 1) - 1) // s + 1
                 for n, k, s, d in zip(x.shape[2:], kernel, stride, self.dilation, strict=True)]  # fmt: skip
        step = x.stride()
        patches = x.as_strided(
            (x.shape[0], *sizes, x.shape[1], *kernel),
            (step[0], *(a * s for a, s in zip(step[2:], stride, strict=True)),
             step[1], *(a * d for a, d in zip(step[2:], self.dilation, strict=True))),
        )  # fmt: skip
        if chosen is None:
            flat = patches.reshape(-1, x.shape[1], *kernel)
        else:
            where = torch.unravel_index(chosen, (x.shape[0], *sizes))
            flat = patches[where]
        return flat.reshape(flat.shape[0], self.groups, -1).transpose(0, 1)

    def outputs(self, y: Tensor, chosen: Tensor | None = None) -> Tensor:
        """The layer's output ``y`` as (groups, rows, outputs)."""
        flat = y.reshape(-1, y.shape[-1]) if self.is_linear else y.movedim(1, -1).flatten(0, -2)
        flat = flat if chosen is None else flat[chosen]
        return flat.reshape(flat.shape[0], self.groups, -1).transpose(0, 1)

    def row_count(self, y: Tensor) -> int:
        """How many rows the output ``y`` has."""
        return y.numel() // y.shape[-1 if self.is_linear else 1]

    def _prepared(self, x: Tensor, kernel: tuple[int, ...]) -> Tensor:
        """The padded input; of a transposed convolution that of the convolution with the flipped kernel it equals."""
        if self.transposed:
            wide = x.new_zeros(*x.shape[:2], *((n - 1) * s + 1 for n, s in zip(x.shape[2:], self.stride, strict=True)))
            where: Any = (..., *(slice(None, None, s) for s in self.stride))
            wide[where] = x
            x = wide
        flat = [side for pair in reversed(self.padding) for side in pair]
        return F.pad(x, flat) if any(flat) else x


class ProductWatch(TorchFunctionMode, ABC):
    """Calls ``self.product(product, x, compute)`` for every product with a weight that is one of ``names``.

    ``names`` maps ids of parameters to their names. ``compute()`` gives the output. Unbatched calls are left alone.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self.names = names

    @abstractmethod
    def product(self, product: Product, x: Tensor, compute: Any) -> Tensor:
        """The output of a product that was recognised."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _CONVOLUTIONS or func in _TRANSPOSED or func is F.linear:
            found = self._recognise(func, args, kwargs)
            if found is not None:
                return self.product(found[0], found[1], lambda: func(*args, **kwargs))
        return func(*args, **kwargs)

    def _recognise(self, func: Any, args: Any, kwargs: Any) -> tuple[Product, Tensor] | None:
        transposed = func in _TRANSPOSED
        names: tuple[str, ...] = _TRANSPOSED_ARGUMENTS if transposed else _CONVOLUTION_ARGUMENTS
        names = _LINEAR_ARGUMENTS if func is F.linear else names
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        weight, bias, x = given["weight"], given.get("bias"), given["input"]
        name = self.names.get(id(weight))
        if name is None or (bias is not None and id(bias) not in self.names):
            return None
        bias_name = None if bias is None else self.names[id(bias)]
        if func is F.linear:
            return Product(name, bias_name), x
        dims = weight.dim() - 2
        if x.dim() != weight.dim():
            return None
        stride, dilation = (_tuple(given.get(key, 1), dims) for key in ("stride", "dilation"))
        padding = _paddings(given, weight.shape[2:], stride, dilation, transposed)
        return Product(name, bias_name, given.get("groups", 1), transposed, stride, padding, dilation), x


def batch_norm_call(func: Any, args: Any, kwargs: Any) -> tuple[Tensor, Tensor | None] | None:
    """Input and running mean of a call of batch norm, None for other functions."""
    if func is F.batch_norm:
        given = {**dict(zip(("input", "running_mean"), args, strict=False)), **(kwargs or {})}
        return given["input"], given["running_mean"]
    if func is torch.batch_norm:
        return args[0], args[3]
    return None


def _paddings(
    given: Mapping[str, Any], kernel: torch.Size, stride: tuple[int, ...], dilation: tuple[int, ...], transposed: bool
) -> tuple[tuple[int, int], ...]:
    padding = given.get("padding", 0)
    reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    if padding == "valid":
        return ((0, 0),) * len(kernel)
    if padding == "same":
        return tuple((total // 2, total - total // 2) for total in reach)
    sides = _tuple(padding, len(kernel))
    if not transposed:
        return tuple((p, p) for p in sides)
    extra = _tuple(given.get("output_padding", 0), len(kernel))
    return tuple((r - p, r - p + e) for r, p, e in zip(reach, sides, extra, strict=True))


def _tuple(value: Any, dims: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return values if len(values) == dims else values * dims
