"""Tensors and state dicts cut down to the slots that stay, or spread out again."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import nn

from channelwise.errors import InvalidArgumentError
from channelwise.inputs.check import describe
from channelwise.selection import Selection
from channelwise.structure import Structure
from channelwise.surgery.cuts import Cut, Cuts, cut_tensors
from channelwise.surgery.masks import removed_mask as removed_mask
from channelwise.surgery.normed import rescaled_state
from channelwise.tensors import named_tensors


def take(tensor: torch.Tensor, cut: Cut) -> torch.Tensor:
    """The kept slots of ``tensor``: a new tensor on its device, in its dtype and memory format."""
    check_shape(cut.info.name, tuple(tensor.shape), cut.info.shape)
    result = tensor.detach()
    for axis, kept in cut.axes.items():
        result = result.index_select(axis, _index(kept, tensor.device))
    if cut.columns is not None:
        result = result.gather(1, _columns(cut.columns, result))
    return laid_out(result, tensor)


def scatter(slim: torch.Tensor, cut: Cut) -> torch.Tensor:
    """The inverse of `take`: ``slim`` spread over zeros of the original shape."""
    check_shape(cut.info.name, tuple(slim.shape), cut.shape)
    result = slim.detach()
    if cut.columns is not None:
        wide = slim.new_zeros((slim.shape[0], cut.info.shape[1], *slim.shape[2:]))
        result = wide.scatter(1, _columns(cut.columns, slim), result)
    for axis, kept in cut.axes.items():
        shape = (*result.shape[:axis], cut.info.shape[axis], *result.shape[axis + 1 :])
        result = slim.new_zeros(shape).index_copy(axis, _index(kept, slim.device), result)
    return laid_out(result, slim)


def laid_out(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """``tensor`` with its axes in memory in the order of those of ``like``."""
    order = sorted(range(like.dim()), key=like.stride, reverse=True)
    # Not as a view: to autograd, writing into a part of it would be writing into another tensor.
    return tensor.permute(order).contiguous().permute([order.index(axis) for axis in range(len(order))]).data


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
            raise InvalidArgumentError(
                f"{type(model).__name__} has no tensor {name!r}, which was there when the model was traced; trace the "
                "model again"
            )
        traced, given = cuts.shapes[name], tuple(present[name].shape)
        if traced != given:
            raise InvalidArgumentError(
                f"{name!r} had shape {traced} when the model was traced and has {given} now; trace the model again"
            )
        found[name] = present[name]
    return found


NUMBERS = "channelwise_numbers"
"""In the metadata that a state dict has for a module: the attributes that follow the channels."""


def map_state(state: Mapping[str, Any], cuts: Cuts, change: Any) -> dict[str, Any]:
    """A state dict with ``change(tensor, cut)`` applied to the touched tensors; order and metadata are kept.

    Raises InvalidArgumentError for a tensor that the trace does not know: it may hold channels that were removed.
    """
    result = type(state)() if isinstance(state, dict) else {}
    # Shared tensors stay shared. A state dict holds a new detached tensor per name, so identity is told by memory.
    done: dict[tuple[int, str], torch.Tensor] = {}
    for key, value in state.items():
        if not isinstance(value, torch.Tensor) or key.endswith("_extra_state"):
            result[key] = value
            continue
        if cuts.shape_of(key) is None:
            raise InvalidArgumentError(
                f"{key} is no tensor of the network that was traced, so that its removed channels are not known. Take "
                "off what was put on the model since then (with parametrize.remove_parametrizations or prune.remove, "
                "for example), or trace the model as it is now and prune that"
            )
        cut = cuts.of(key)
        if cut is not None:
            same = (value.data_ptr(), cut.info.name)
            if same not in done:
                done[same] = change(value, cut)
            value = done[same]
        result[key] = value
    metadata = getattr(state, "_metadata", None)
    if metadata is not None:
        result._metadata = copy.deepcopy(metadata)  # type: ignore[attr-defined]
    return result


def placed(state: dict[str, Any], destination: Any, prefix: str) -> Any:
    """A state dict put into ``destination``, its keys with ``prefix``, as `torch.nn.Module.state_dict` does."""
    if destination is None and not prefix:
        return state
    if not isinstance(prefix, str) or not (destination is None or isinstance(destination, MutableMapping)):
        raise InvalidArgumentError(
            f"A state dict goes into a dict, with a text before its keys; not into {describe(destination)} with "
            f"{describe(prefix)}."
        )
    result: Any = OrderedDict() if destination is None else destination
    result.update((prefix + key, value) for key, value in state.items())
    metadata = getattr(state, "_metadata", None)
    if metadata is not None:
        known = getattr(result, "_metadata", None)
        if known is None:
            known = OrderedDict()
            with suppress(AttributeError):  # a plain dict has none
                result._metadata = known
        known.update((f"{prefix}{path}" if path else prefix[:-1], entry) for path, entry in metadata.items())
    return result


def slim_state(state: Mapping[str, Any], cuts: Cuts) -> dict[str, Any]:
    """The state dict of the slim model, which knows the numbers that its modules need."""
    slim = map_state(rescaled_state(state, cuts), cuts, take)
    metadata = getattr(slim, "_metadata", None)
    if metadata is not None:
        for module, numbers in cuts.numbers.items():
            metadata.setdefault(module, {})[NUMBERS] = dict(numbers)
    return slim


def slim_state_dict(state_dict: Mapping[str, Any], structure: Structure, selection: Selection) -> dict[str, Any]:
    """The state dict of the slim model from that of the original or sparse one; keys and their order stay."""
    return slim_state(state_dict, cut_tensors(structure, selection))


class SlotIndex:
    """Slots as an index on every device on which they were asked for: copying them anew would wait for the device."""

    def __init__(self, slots: np.ndarray) -> None:
        self.slots = slots
        self._on: dict[torch.device, torch.Tensor] = {}

    def __deepcopy__(self, memo: Any) -> SlotIndex:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return SlotIndex, (self.slots,)

    def on(self, device: torch.device) -> torch.Tensor:
        """The slots as a tensor on ``device``; autograd may keep it, even if it was made under inference mode."""
        if device not in self._on:
            with torch.inference_mode(False):
                self._on[device] = _index(self.slots, device)
        return self._on[device]


def _index(slots: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(slots, dtype=np.int64)).to(device)


def _columns(columns: np.ndarray, tensor: torch.Tensor) -> torch.Tensor:
    """The index of columns (rows, columns) for gathering out of or scattering into ``tensor`` (rows, …)."""
    index = _index(columns, tensor.device)
    return index.reshape(*index.shape, *[1] * (tensor.dim() - 2)).expand(*index.shape, *tensor.shape[2:])
