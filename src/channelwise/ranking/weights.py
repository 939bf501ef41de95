"""The model's tensors as criteria see them: a mapping by name that also knows how slots lie in each tensor."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping

import numpy as np
import torch

from channelwise.errors import InvalidArgumentError
from channelwise.structure import Group, Slots, Structure, TensorInfo


class Weights(Mapping[str, torch.Tensor]):
    """Parameters and buffers by name, with reductions to one value a slot.

    Slots of a blocked tensor (a grouped convolution) cannot be read off its shape, hence ``infos``. Reductions are
    remembered, so an instance must not outlive a change of the weights.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], infos: Mapping[str, TensorInfo]) -> None:
        self._tensors = tensors
        self._infos = infos
        self._norms: dict[tuple[str, int, float], np.ndarray] = {}

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor], structure: Structure | None = None) -> Weights:
        """``tensors`` itself if it is Weights already; without a structure no tensor is taken for blocked.

        Raises InvalidArgumentError if a tensor of the structure's groups is missing or has another shape.
        """
        if isinstance(tensors, Weights):
            return tensors
        if structure is None:
            return cls(tensors, {n: TensorInfo(n, tuple(t.shape), True, "") for n, t in tensors.items()})
        for name in {s.tensor for g in structure.groups for s in g.slots}:
            if name not in tensors:
                raise InvalidArgumentError(
                    f"{name!r} was there when the model was traced and is not now; trace the model again."
                )
            traced, given = structure.tensors[name].shape, tuple(tensors[name].shape)
            if traced != given:
                raise InvalidArgumentError(
                    f"{name!r} had shape {traced} when the model was traced and has {given} now; trace the model again."
                )
        return cls(tensors, structure.tensors)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def info(self, name: str) -> TensorInfo:
        """Shape and blocks of the tensor called ``name``."""
        return self._infos[name]

    def ranked(self, group: Group) -> list[Slots]:
        """The slots by whose weights a channel is judged: output rows; without any, all float parameters."""
        floats = [s for s in group.slots if self[s.tensor].is_floating_point() or self[s.tensor].is_complex()]
        output = [s for s in floats if s.role == "output"]
        return output or [s for s in floats if self.info(s.tensor).is_parameter]

    def consumers(self, group: Group) -> list[Slots]:
        """The slots of weights that read the channels; not those of depthwise kernels, which pass a channel on."""
        return [
            s
            for s in group.slots
            if s.role == "input" and (self[s.tensor].is_floating_point() or self[s.tensor].is_complex())
        ]

    def slot_norms(self, name: str, axis: int, order: float) -> np.ndarray:
        """The vector norm of what belongs to each slot along ``axis``: float64, (slots along the axis,)."""
        key = (name, axis, order)
        if key not in self._norms:
            tensor = self[name].detach()
            if tensor.dim() == 1:
                norms = tensor.abs()
            else:
                norms = torch.linalg.vector_norm(
                    self._by_block(tensor, name, axis), order, dim=(1, 3), dtype=_accumulator(tensor)
                ).flatten()
            # numpy has no bfloat16, and some devices no float64.
            self._norms[key] = norms.cpu().to(torch.float64).numpy()
        return self._norms[key]

    def slot_sums(self, name: str, axis: int) -> np.ndarray:
        """The sum of what belongs to each slot along ``axis``: float64, (slots along the axis,)."""
        tensor = self[name].detach()
        if tensor.dim() > 1:
            tensor = self._by_block(tensor, name, axis).sum(dim=(1, 3), dtype=_accumulator(tensor)).flatten()
        return tensor.cpu().to(torch.float64).numpy()

    def zero_slots(self, name: str, axis: int) -> np.ndarray:
        """Mask of the slots along ``axis`` to which nothing but exact zeros belongs: (slots along the axis,)."""
        tensor = self[name].detach()
        block = tensor.shape[0] // self.info(name).blocks
        first = tensor[::block] if axis == 1 else tensor[(0,) * axis].unsqueeze(0)
        # One element a slot settles it for nearly every tensor, without reading all of it.
        if bool((first.flatten(2)[:, :, 0] if first.dim() > 2 else first).ne(0).all()):
            return np.zeros(self.info(name).slots(axis), bool)
        return self.slot_norms(name, axis, np.inf) == 0

    def rows(self, name: str, axis: int) -> torch.Tensor:
        """What belongs to each slot along ``axis`` as a row: (slots along the axis, elements per slot)."""
        tensor = self[name].detach()
        return self._by_block(tensor, name, axis).transpose(1, 2).flatten(0, 1).flatten(1)

    def _by_block(self, tensor: torch.Tensor, name: str, axis: int) -> torch.Tensor:
        """``tensor`` as (blocks, before, slots of a block, after), where block and slot together are the slot."""
        info = self.info(name)
        blocks = info.blocks if axis == 1 else 1
        shape = tensor.shape
        before = int(np.prod(shape[:axis])) // blocks
        after = int(np.prod(shape[axis + 1 :]))
        return tensor.reshape(blocks, before, shape[axis], after)


def fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """A checksum of the values of all tensors."""
    check = 0
    for name in sorted(tensors):
        data = tensors[name].detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy()
        check = zlib.crc32(data.data, check)
    return f"{check:08x}"


def _accumulator(tensor: torch.Tensor) -> torch.dtype | None:
    """The type to sum in: half precision would lose channels' differences."""
    return torch.float32 if tensor.is_floating_point() and tensor.dtype.itemsize < 4 else None
