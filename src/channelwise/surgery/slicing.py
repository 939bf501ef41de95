"""Index arithmetic on slots: which slots a selection keeps, and tensors cut down to them or spread out again."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from channelwise.errors import InvalidArgumentError
from channelwise.selection import Selection, removed_channels
from channelwise.structure import Structure, TensorInfo
from channelwise.tensors import named_tensors


@dataclass(frozen=True)
class Cut:
    """What stays of one tensor.

    ``kept`` maps an axis to its kept slots, sorted; an axis that is not named stays whole. With ``info.blocks > 1``
    axis 1 counts slots of all blocks, see `TensorInfo`, and ``columns`` holds the kept columns of every block that
    keeps rows, shape (blocks kept, columns kept per block).
    """

    info: TensorInfo
    kept: Mapping[int, np.ndarray]
    columns: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the slim tensor."""
        shape = [len(self.kept[a]) if a in self.kept else n for a, n in enumerate(self.info.shape)]
        if self.columns is not None:
            shape[1] = self.columns.shape[1]
        return tuple(shape)

    @property
    def rows(self) -> np.ndarray:
        """Kept slots along axis 0."""
        return self.kept.get(0, np.arange(self.info.shape[0]))


@dataclass(frozen=True)
class Cuts:
    """What stays of every tensor that a selection touches; plain data that pickles.

    ``tensors`` is keyed by the structure's tensor names; ``shapes`` covers the untouched tensors too. ``numbers`` are
    the attributes of modules that follow the channels, as they are in the slim model.
    """

    tensors: Mapping[str, Cut]
    shapes: Mapping[str, tuple[int, ...]]
    aliases: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def __deepcopy__(self, memo: Any) -> Cuts:
        return self

    def of(self, name: str) -> Cut | None:
        """The cut of a tensor by any of its names, None if all of it stays."""
        return self.tensors.get(self.aliases.get(name, name))

    def shape_of(self, name: str) -> tuple[int, ...] | None:
        """The original shape of a tensor by any of its names, None if the trace does not know it."""
        return self.shapes.get(self.aliases.get(name, name))


def cut_tensors(structure: Structure, selection: Selection) -> Cuts:
    """The kept slots of every tensor: all of its slots but those of removed channels."""
    removed = removed_channels(structure, selection)
    keep: dict[str, dict[int, np.ndarray]] = {}
    for group in structure.groups:
        lost = removed.get(group.name)
        if lost is None:
            continue
        for slots in group.slots:
            axes = keep.setdefault(slots.tensor, {})
            if slots.axis not in axes:
                axes[slots.axis] = np.ones(structure.tensors[slots.tensor].slots(slots.axis), dtype=bool)
            axes[slots.axis][slots.index[lost]] = False
    tensors = {name: _cut(structure.tensors[name], axes) for name, axes in keep.items()}
    counts = {group.name: len(selection.kept[group.name]) for group in structure.groups}
    numbers: dict[str, dict[str, int]] = {}
    for number in structure.numbers:
        numbers.setdefault(number.module, {})[number.attribute] = number.size(counts)
    return Cuts(tensors, {n: tuple(t.shape) for n, t in structure.tensors.items()}, dict(structure.aliases), numbers)


def _cut(info: TensorInfo, keep: Mapping[int, np.ndarray]) -> Cut:
    kept = {axis: np.flatnonzero(mask) for axis, mask in keep.items()}
    if info.blocks == 1 or 1 not in keep:
        return Cut(info, kept)
    rows = keep.get(0, np.ones(info.shape[0], dtype=bool))
    live = rows.reshape(info.blocks, -1).any(axis=1)
    columns = keep[1].reshape(info.blocks, info.shape[1])[live]
    counts = columns.sum(axis=1)
    if len(set(counts.tolist())) > 1:
        raise InvalidArgumentError(
            f"the blocks of {info.name} must keep equally many columns, the selection keeps {counts.tolist()}"
        )
    return Cut(info, kept, np.nonzero(columns)[1].reshape(len(counts), -1))


def take(tensor: torch.Tensor, cut: Cut) -> torch.Tensor:
    """The kept slots of ``tensor``: a new tensor on its device, in its dtype and memory format."""
    check_shape(cut.info.name, tuple(tensor.shape), cut.info.shape)
    order = _dims_by_stride(tensor)
    result = tensor.detach().permute(order)
    for axis, kept in cut.kept.items():
        if axis == 1 and cut.columns is not None:
            continue
        result = result.index_select(order.index(axis), _index(kept, tensor.device))
    if cut.columns is not None:
        columns = _index(_columns_of_rows(cut), tensor.device)
        at = (order.index(0), order.index(1))
        view = [1] * tensor.dim()
        view[at[0]], view[at[1]] = columns.shape
        wide = list(result.shape)
        wide[at[1]] = columns.shape[1]
        if at[0] > at[1]:
            columns = columns.t()
        result = result.gather(at[1], columns.reshape(view).expand(wide))
    return result.permute(_inverse(order))


def scatter(slim: torch.Tensor, cut: Cut) -> torch.Tensor:
    """The inverse of `take`: ``slim`` spread over zeros of the original shape."""
    check_shape(cut.info.name, tuple(slim.shape), cut.shape)
    order = _dims_by_stride(slim)
    result = slim.detach()
    if cut.columns is not None:
        columns = _index(_columns_of_rows(cut), slim.device)
        shape = (slim.shape[0], cut.info.shape[1], *slim.shape[2:])
        index = columns.reshape(*columns.shape, *[1] * (slim.dim() - 2)).expand(slim.shape)
        result = slim.new_zeros(shape).scatter(1, index, result)
    for axis, kept in cut.kept.items():
        if axis == 1 and cut.columns is not None:
            continue
        shape = (*result.shape[:axis], cut.info.shape[axis], *result.shape[axis + 1 :])
        result = slim.new_zeros(shape).index_copy(axis, _index(kept, slim.device), result)
    return result.permute(order).contiguous().permute(_inverse(order))


def removed_mask(cut: Cut) -> torch.Tensor:
    """True where a slot is removed; on the CPU, broadcasts to the original shape (length 1 along axes kept whole)."""
    dims = len(cut.info.shape)
    mask = torch.zeros([1] * dims, dtype=torch.bool)
    for axis, kept in cut.kept.items():
        if axis == 1 and cut.info.blocks > 1:
            mask = mask | _removed_columns(cut, kept)
            continue
        along = torch.ones(cut.info.shape[axis], dtype=torch.bool)
        along[torch.from_numpy(kept)] = False
        mask = mask | along.reshape([-1 if a == axis else 1 for a in range(dims)])
    return mask


def _removed_columns(cut: Cut, kept: np.ndarray) -> torch.Tensor:
    blocks, (rows, columns) = cut.info.blocks, cut.info.shape[:2]
    gone = torch.ones(blocks * columns, dtype=torch.bool)
    gone[torch.from_numpy(kept)] = False
    per_row = gone.reshape(blocks, columns).repeat_interleave(rows // blocks, dim=0)
    return per_row.reshape(rows, columns, *[1] * (len(cut.info.shape) - 2))


def check_shape(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raises InvalidArgumentError naming the tensor and both shapes if they differ."""
    if tuple(found) != tuple(expected):
        raise InvalidArgumentError(f"{name} has shape {tuple(found)}, expected {tuple(expected)}")


def tensors_of(model: nn.Module, names: Iterable[str], cuts: Cuts) -> dict[str, torch.Tensor]:
    """The model's tensors called ``names``, checked against the traced shapes.

    Raises:
        InvalidArgumentError: a tensor is missing or has another shape than when the model was traced.
    """
    present = named_tensors(model)
    found = {}
    for name in names:
        if name not in present:
            raise InvalidArgumentError(f"{type(model).__name__} has no tensor {name!r}; was another model traced?")
        check_shape(name, tuple(present[name].shape), cuts.shapes[name])
        found[name] = present[name]
    return found


NUMBERS = "channelwise_numbers"
"""In the metadata that a state dict has for a module: the attributes that follow the channels."""


def map_state(state: Mapping[str, Any], cuts: Cuts, change: Any) -> dict[str, Any]:
    """A state dict with ``change(tensor, cut)`` applied to the touched tensors; order and metadata are kept."""
    result = type(state)() if isinstance(state, dict) else {}
    # Shared tensors stay shared. A state dict holds a new detached tensor per name, so identity is told by memory.
    done: dict[tuple[int, str], torch.Tensor] = {}
    for key, value in state.items():
        cut = cuts.of(key)
        if cut is not None and isinstance(value, torch.Tensor):
            same = (value.data_ptr(), cut.info.name)
            if same not in done:
                done[same] = change(value, cut)
            value = done[same]
        result[key] = value
    metadata = getattr(state, "_metadata", None)
    if metadata is not None:
        result._metadata = copy.deepcopy(metadata)  # type: ignore[attr-defined]
    return result


def slim_state(state: Mapping[str, Any], cuts: Cuts) -> dict[str, Any]:
    """The state dict of the slim model, which knows the numbers that its modules need."""
    slim = map_state(state, cuts, take)
    metadata = getattr(slim, "_metadata", None)
    if metadata is not None:
        for module, numbers in cuts.numbers.items():
            metadata.setdefault(module, {})[NUMBERS] = dict(numbers)
    return slim


def slim_state_dict(state_dict: Mapping[str, Any], structure: Structure, selection: Selection) -> dict[str, Any]:
    """The state dict of the slim model from that of the original or sparse one; keys and their order stay."""
    return slim_state(state_dict, cut_tensors(structure, selection))


def _columns_of_rows(cut: Cut) -> np.ndarray:
    """Column indices for each kept row of a blocked tensor, shape (rows kept, columns kept)."""
    assert cut.columns is not None
    block = cut.rows // (cut.info.shape[0] // cut.info.blocks)
    return cut.columns[np.unique(block, return_inverse=True)[1]]


def _index(indices: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(indices, dtype=np.int64)).to(device)


def _dims_by_stride(tensor: torch.Tensor) -> list[int]:
    """Dimensions from the outermost to the innermost in memory, so that slices can be laid out the same way."""
    dims = list(range(tensor.dim()))
    if tensor.is_contiguous() and tensor.stride() == _row_major(tensor.shape):
        return dims
    return sorted(dims, key=lambda d: tensor.stride(d), reverse=True)


def _row_major(shape: torch.Size) -> tuple[int, ...]:
    strides, step = [], 1
    for length in reversed(shape):
        strides.append(step)
        step *= max(length, 1)
    return tuple(reversed(strides))


def _inverse(order: list[int]) -> list[int]:
    return [order.index(d) for d in range(len(order))]
