"""What a rule may ask and say while the model runs: label maps of tensors, joins, reasons."""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from channelwise.structure import Cause, Reason
from channelwise.tracing.call import Call
from channelwise.tracing.labels import LabelMap, LabelSpace
from channelwise.tracing.provenance import Traced, Use

Maps = tuple[LabelMap, ...]

Place = tuple[int, int, tuple[int, ...], tuple[int, ...]]
"""A storage, an offset in it, a shape and strides: tensors with the same are the same elements."""

HEADS = re.compile(r"(^|_)n?heads?(_\w)?$")
"""The names by which modules keep how many attention heads they have: ``num_heads``, ``heads``."""


@dataclass(frozen=True, eq=False)
class _Known:
    tensor: weakref.ref[torch.Tensor]
    maps: Maps
    is_weight: bool


@dataclass
class TraceContext:
    """The state of one run of the model under the tracer.

    ``module`` is the qualified name of the module being executed, ``operation`` the ATen operator.
    ``running`` is the module itself, ``call`` the torch function.
    ``repeated`` are the first labels of axes along which the same is repeated, ``sharing`` those of axes of which all
    are multiplied with the same. ``uses`` are what numbers were used for.
    ``runs`` are the labels that operations saw side by side, with the module. ``unseen`` are the maps of tensors that
    the model may have returned inside of something else.
    """

    space: LabelSpace
    module: str = ""
    running: torch.nn.Module = field(default_factory=torch.nn.Module)
    operation: str = ""
    call: Call = field(default_factory=Call)
    uses: list[Use] = field(default_factory=list)
    runs: list[tuple[str, tuple[np.ndarray, ...]]] = field(default_factory=list)
    touched: set[int] = field(default_factory=set)
    unseen: list[LabelMap] = field(default_factory=list)
    repeated: set[int] = field(default_factory=set)
    sharing: set[int] = field(default_factory=set)
    _known: dict[int, _Known] = field(default_factory=dict)
    _places: dict[Place, tuple[StorageWeakRef, _Known]] = field(default_factory=dict)
    _most_known: int = 256
    _fresh: dict[int, tuple[weakref.ref[torch.Tensor], tuple[Traced, ...]]] = field(default_factory=dict)
    _pending: dict[Place | int, tuple[Any, np.ndarray, Reason]] = field(default_factory=dict)
    _nonzero_storages: dict[int, torch.UntypedStorage] = field(default_factory=dict)

    def knows(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor comes from the model's inputs, parameters or buffers."""
        return self._find(tensor) is not None

    def maps(self, tensor: torch.Tensor) -> Maps:
        """The label maps of a tensor; none for inputs and constants."""
        known = self._find(tensor)
        if known is None:
            return ()
        if self._nonzero_storages and known.maps and tensor.untyped_storage()._cdata in self._nonzero_storages:
            return tuple(m.with_zero(False) for m in known.maps)
        return known.maps

    def is_weight(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor was computed from parameters and buffers alone."""
        known = self._find(tensor)
        return known is not None and known.is_weight

    def set(self, tensor: torch.Tensor, maps: Iterable[LabelMap], is_weight: bool = False) -> None:
        """Give a tensor its label maps; maps of axes of length 1 say nothing and are dropped."""
        kept = tuple(m for m in maps if m.labels.shape[m.axis] > 1)
        known = self._known[id(tensor)] = _Known(weakref.ref(tensor), kept, is_weight)
        if (place := _place(tensor)) is not None:
            with torch._C.DisableTorchFunction():
                self._places[place] = StorageWeakRef(tensor.untyped_storage()), known
        if len(self._known) > self._most_known:
            self._known = {key: known for key, known in self._known.items() if known.tensor() is not None}
            self._places = {place: one for place, one in self._places.items() if not one[0].expired()}
            self._most_known = 2 * len(self._known) + 256

    def left_alive(self) -> list[LabelMap]:
        """The maps of all tensors that somebody still holds, other than weights."""
        alive = [one for storage, one in self._places.values() if not one.is_weight and not storage.expired()]
        return [m for one in alive for m in one.maps]

    def mark_fresh(self, tensor: torch.Tensor) -> None:
        """The tensor was just made of equal or random elements, by a size that may or may not be a constant."""
        self._fresh[id(tensor)] = weakref.ref(tensor), self.call.numbers

    def is_fresh(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor was made in this run and its elements are exchangeable."""
        made = self._fresh.get(id(tensor))
        return made is not None and made[0]() is tensor

    def meets_fresh(self, tensor: torch.Tensor, labels: np.ndarray) -> None:
        """Numbers that gave a fresh tensor its size stand for labels that it meets."""
        if self.is_fresh(tensor):
            self._stand(self._fresh[id(tensor)][1], labels.size, labels)

    def freeze_when_used(self, tensor: torch.Tensor, labels: np.ndarray, text: str) -> None:
        """Freeze labels once an operation reads ``tensor``; asking for its shape alone does no harm."""
        place = _place(tensor)
        with torch._C.DisableTorchFunction():
            held = weakref.ref(tensor) if place is None else StorageWeakRef(tensor.untyped_storage())
        self._pending[place or id(tensor)] = held, labels, self.because(text)

    def use(self, tensors: Iterable[torch.Tensor]) -> None:
        """Operations or outputs read these tensors."""
        for tensor in tensors if self._pending else ():
            pending = self._pending.pop(_place(tensor) or id(tensor), None)
            if pending is None:
                continue
            held, labels, reason = pending
            if not held.expired() if isinstance(held, StorageWeakRef) else held() is tensor:
                self.space.freeze(labels, reason)

    def forget_zero(self, tensor: torch.Tensor) -> None:
        """An in-place operation made removed values of this storage differ from zero."""
        storage = tensor.untyped_storage()
        self._nonzero_storages[storage._cdata] = storage

    def map_on(self, tensor: torch.Tensor, axis: int) -> LabelMap | None:
        """The map along ``axis`` (several are joined first), or None."""
        if axis < 0:
            axis %= max(tensor.ndim, 1)
        first = None
        for m in self.maps(tensor):
            if m.axis != axis:
                continue
            if first is None:
                first = m
            else:
                self.space.join(first.labels, m.labels)
        return first

    def labels_on(self, tensor: torch.Tensor, axis: int) -> np.ndarray | None:
        """Labels (n,) along ``axis``, columns of all blocks tied where they differ; None if there are none."""
        found = self.map_on(tensor, axis)
        if found is None:
            return None
        return self.one_axis(found)

    def flat_map(self, tensor: torch.Tensor, axis: int) -> LabelMap | None:
        """The map along ``axis`` with its labels as a vector (n,), columns of all blocks tied; or None."""
        found = self.map_on(tensor, axis)
        return None if found is None else LabelMap(self.one_axis(found), 0, found.zero)

    def one_axis(self, m: LabelMap) -> np.ndarray:
        """Labels (n,) of a map, those of different blocks of rows tied."""
        labels = m.labels
        for other in range(labels.ndim) if not m.uniform else ():
            if other != m.axis:
                labels = self.space.tie(labels, other)
        return labels.reshape(-1)

    def because(self, text: str, cause: Cause = Cause.FIXED) -> Reason:
        """A reason that names the operation and the module being executed."""
        return Reason(self.operation, self.module, text, cause)

    def freeze(self, labels: np.ndarray, text: str) -> None:
        """Freeze labels, naming the operation and the module being executed."""
        self.space.freeze(labels, self.because(text))

    def freeze_axes(self, tensor: torch.Tensor, axes: Sequence[int], text: str) -> None:
        """Freeze whatever is labelled along these axes."""
        wanted = {a % tensor.ndim for a in axes} if tensor.ndim else set()
        for m in self.maps(tensor):
            if m.axis in wanted:
                self.freeze(m.labels, text)

    def freeze_all(self, tensors: Iterable[torch.Tensor], text: str, cause: Cause = Cause.FIXED) -> None:
        """Freeze every label of these tensors."""
        for tensor in tensors:
            for m in self.maps(tensor):
                self.space.freeze(m.labels, self.because(text, cause))

    def ask(self, labels: np.ndarray, text: str, always: bool = False, whole: np.ndarray | None = None) -> None:
        """Have verification find out whether the user's code adapts, unless it is known to (or ``always``).

        ``whole``: the labels that these were picked out of.
        """
        if always or not self.call.adapts:
            self.space.ask(labels, self.because(text), whole)

    def saw(self, *runs: np.ndarray) -> None:
        """An operation saw these runs of labels side by side."""
        seen = tuple(labels.reshape(-1) for labels in runs if labels.size > 1)
        if seen:
            self.runs.append((self.module, seen))

    def stands(self, value: int, labels: np.ndarray, axis: int | None = None) -> None:
        """A number that the running function was given, this ``value``, stands for a run of as many labels.

        ``axis``: that of the shape which the function was asked for.
        """
        call = self.call
        if call.adapts:
            return
        if axis is not None and (number := call.number(axis)) is not None:
            self._stand((number,), value, labels)
        elif axis is None or not call.sizes:
            self._stand(call.numbers, value, labels)

    def _stand(self, numbers: Iterable[Traced], value: int, labels: np.ndarray) -> None:
        for number in numbers if labels.size > 1 else ():
            # A number of an earlier trace may have stayed in a cache of the user's.
            if int(number) == value == labels.size and all(origin.uses is self.uses for origin, _ in number.terms):
                self.uses.append(Use(number, labels.reshape(-1), self.module))

    def is_number_of_heads(self, axis: int, length: int, behind: int) -> bool:
        """Whether an axis of the shape that is asked for is one of attention heads, by the name of its number.

        ``behind``: how many elements of a split axis lie behind it, in torch's own attention a head.
        """
        number = self.call.number(axis)
        if number is not None and number.origin is not None and number.origin.places:
            return HEADS.search(number.origin.name) is not None
        return behind == self.call.head_width or length in _numbers_of_heads(self.running)

    def is_named(self, axis: int, length: int) -> bool:
        """Whether the length of an axis has an origin, in the shape that is asked for or else in a number given."""
        if self.call.sizes:
            return self.call.number(axis) is not None
        return any(int(number) == length for number in self.call.numbers)

    def is_read(self, axis: int) -> bool:
        """Whether an axis of the shape that is asked for has a length that was read off channels."""
        number = self.call.number(axis)
        return number is not None and number.origin is not None and number.origin.read is not None

    def repeat(self, length: int) -> np.ndarray:
        """Labels (length,) of an axis along which the same is repeated."""
        labels = self.space.new(length)
        self.repeated.add(int(labels[0]))
        return labels

    def share(self, a: LabelMap, b: LabelMap) -> None:
        """Labels of two axes meet; if what one tensor has there is repeated, those of the other axis share it."""
        for m, other in ((a, b), (b, a)):
            if self.is_repeat(m) and not self.is_repeat(other):
                self.sharing.add(int(other.labels.flat[0]))

    def shares(self, m: LabelMap) -> bool:
        """Whether all that have these labels share a factor of theirs."""
        return int(m.labels.flat[0]) in self.sharing

    def stays_repeated(self, labels: np.ndarray, text: str) -> None:
        """Such labels stay, and no number follows them: of two numbers that do it may be the constant quotient."""
        self.freeze(labels, text)
        first = labels.flat[0]
        self.uses[:] = [use for use in self.uses if use.labels[0] != first]

    def is_repeat(self, m: LabelMap) -> bool:
        """Whether a map has labels that `repeat` made."""
        return int(m.labels.flat[0]) in self.repeated

    def inexact(self, labels: np.ndarray, text: str) -> None:
        """Zeroing these labels is not the same as removing them."""
        self.space.mark_inexact(labels, self.because(text))

    def contract(self, a: LabelMap | None, b: LabelMap | None, text: str) -> None:
        """Join the labels of two axes that are multiplied and summed over; both maps run along broadcastable arrays."""
        if a is not None and b is not None:
            self.space.join(a.labels, b.labels)
            if not a.zero and not b.zero:
                self.inexact(a.labels, "neither factor of this product is zero where a channel was removed")
        elif a is not None or b is not None:
            self.freeze((a or b).labels, text)  # type: ignore[union-attr]

    def _find(self, tensor: torch.Tensor) -> _Known | None:
        known = self._known.get(id(tensor))
        if known is not None and known.tensor() is tensor:
            return known
        # Another object around the same elements: of a subclass, or a parameter made of a result.
        place = _place(tensor)
        storage, known = self._places.get(place, (None, None)) if place is not None else (None, None)
        return known if storage is not None and not storage.expired() else None


def _place(tensor: torch.Tensor) -> Place | None:
    """Where the elements of a tensor lie in memory; None if they do not lie there one by one."""
    # Our own looking is nothing that the function watch should see.
    with torch._C.DisableTorchFunction():
        wrapped = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        if wrapped or tensor.layout != torch.strided or tensor.is_nested or not tensor.numel():
            return None
        storage = tensor.untyped_storage()._cdata
        return storage, int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride()


def _numbers_of_heads(module: torch.nn.Module) -> set[int]:
    """How many attention heads a user's module has, by the names that such numbers go by."""
    if type(module).__module__.startswith("torch.nn."):
        return set()
    return {v for name, v in module.__dict__.items() if isinstance(v, int) and v > 1 and HEADS.search(name)}
