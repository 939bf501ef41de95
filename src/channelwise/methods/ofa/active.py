"""What is active of one tensor of a dynamic layer, and taking it: a view of a prefix, or an index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch


class Part:
    """The active slots of one tensor; immutable, so copies of a model share it.

    ``prefix`` are pairs (axis, length), ``index`` sorted slots by axis where they are no prefix. ``columns`` (rows,
    columns) say for a grouped convolution which columns every active row keeps.
    """

    __slots__ = ("_elsewhere", "columns", "index", "prefix")

    def __init__(
        self,
        prefix: Sequence[tuple[int, int]] = (),
        index: Mapping[int, torch.Tensor] | None = None,
        columns: torch.Tensor | None = None,
    ) -> None:
        self.prefix = tuple(prefix)
        self.index = dict(index or {})
        self.columns = columns
        self._elsewhere: dict[tuple[int, torch.device], torch.Tensor] = {}

    @property
    def is_view(self) -> bool:
        """Whether what is taken shares memory with the whole."""
        return not self.index and self.columns is None

    def at(self, axis: int, device: torch.device) -> torch.Tensor:
        """The index of an axis (-1: the columns) on a device, moved there once."""
        index = self.columns if axis < 0 else self.index[axis]
        assert index is not None
        if index.device == device:
            return index
        if (axis, device) not in self._elsewhere:
            self._elsewhere[axis, device] = index.to(device)
        return self._elsewhere[axis, device]

    def __deepcopy__(self, memo: Any) -> Part:
        return self

    def __reduce__(self) -> Any:
        return Part, (self.prefix, self.index, self.columns)


def take_active(tensor: torch.Tensor, part: Part | None) -> torch.Tensor:
    """The active slots of ``tensor``. Gradients flow to them; those of all other slots are exactly zero."""
    if part is None:
        return tensor
    for axis, length in part.prefix:
        tensor = tensor.narrow(axis, 0, length)
    for axis in part.index:
        tensor = tensor.index_select(axis, part.at(axis, tensor.device))
    if part.columns is not None:
        columns = part.at(-1, tensor.device)
        columns = columns.reshape(*columns.shape, *[1] * (tensor.dim() - 2))
        tensor = tensor.gather(1, columns.expand(*columns.shape[:2], *tensor.shape[2:]))
    return tensor


def put_active(whole: torch.Tensor, part: Part | None, value: torch.Tensor) -> None:
    """Write ``value`` into the active slots of a buffer (C,), in place."""
    with torch.no_grad():
        if part is None:
            if value is not whole:
                whole.copy_(value)
        elif not part.is_view:
            ((axis, _),) = part.index.items()
            whole.index_copy_(axis, part.at(axis, whole.device), value.to(whole))
        elif value._base is not whole:
            take_active(whole, part).copy_(value)
