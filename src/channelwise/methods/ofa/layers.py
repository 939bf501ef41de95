"""Dynamic layers: the layers of PyTorch, run with the active part of their channels.

Parameters and buffers keep the names and shapes of the full layer, so checkpoints load strictly. Attributes such as
``in_channels``, ``num_features`` and ``groups`` say what is active.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from channelwise.methods.ofa.active import Part, put_active, rescaled_active, take_active
from channelwise.methods.ofa.kernels import ElasticKernel
from channelwise.structure import NormedWeight


class Dynamic:
    """A module some of whose channels are active. Full width until parts are set."""

    _active: Mapping[str, Part] = {}
    _normed: NormedWeight | None = None

    def active(self, name: str) -> torch.Tensor | None:
        """The active slots of the parameter or buffer ``name``; None if the module has none."""
        tensor = getattr(self, name)
        return tensor if tensor is None else take_active(tensor, self._active.get(name))

    def put(self, name: str, value: torch.Tensor) -> None:
        """Write the active slots of the buffer ``name``."""
        put_active(getattr(self, name), self._active.get(name), value)


class _DynamicConv(Dynamic, ElasticKernel):
    """Weight (O, I / g, …): the first active rows and columns; bias (O,)."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        weight = self.shrunk(self.active("weight"))
        return self._conv_forward(input, weight, self.active("bias"))  # type: ignore[attr-defined]


class DynamicConv1d(_DynamicConv, nn.Conv1d):
    """`torch.nn.Conv1d` with elastic input and output channels."""


class DynamicConv2d(_DynamicConv, nn.Conv2d):
    """`torch.nn.Conv2d` with elastic input and output channels and, if it is square and odd, kernel size."""


class DynamicConv3d(_DynamicConv, nn.Conv3d):
    """`torch.nn.Conv3d` with elastic input and output channels."""


class _DynamicConvTranspose(Dynamic):
    """Weight (I, O / g, …): the first active rows and columns; bias (O,)."""

    def forward(self, input: torch.Tensor, output_size: Any = None) -> torch.Tensor:
        layer: Any = self
        dims = len(layer.kernel_size)
        padding = layer._output_padding(
            input, output_size, layer.stride, layer.padding, layer.kernel_size, dims, layer.dilation
        )
        transposed = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[dims - 1]
        weight: Any = self.active("weight")
        return transposed(
            input, weight, self.active("bias"), layer.stride, layer.padding, padding, layer.groups,
            layer.dilation,
        )  # fmt: skip


class DynamicConvTranspose1d(_DynamicConvTranspose, nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d` with elastic input and output channels."""


class DynamicConvTranspose2d(_DynamicConvTranspose, nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` with elastic input and output channels."""


class DynamicConvTranspose3d(_DynamicConvTranspose, nn.ConvTranspose3d):
    """`torch.nn.ConvTranspose3d` with elastic input and output channels."""


class DynamicLinear(Dynamic, nn.Linear):
    """`torch.nn.Linear` with elastic input and output features."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.linear(input, self.active("weight"), self.active("bias"))  # type: ignore[arg-type]


class _DynamicBatchNorm(Dynamic):
    """Statistics and affine parameters (C,) of the active channels. Widths share the statistics: re-estimate them."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        norm: Any = self
        norm._check_input_dim(input)
        factor = 0.0 if norm.momentum is None else norm.momentum
        if norm.training and norm.track_running_stats and norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
            if norm.momentum is None:
                factor = 1.0 / float(norm.num_batches_tracked)
        mean, variance = self.active("running_mean"), self.active("running_var")
        batch = norm.training or (mean is None and variance is None)
        kept = not norm.training or norm.track_running_stats
        output = F.batch_norm(
            input, mean if kept else None, variance if kept else None, self.active("weight"), self.active("bias"),
            batch, factor, norm.eps,
        )  # fmt: skip
        if norm.training and kept and mean is not None and variance is not None:
            self.put("running_mean", mean)
            self.put("running_var", variance)
        return output


class DynamicBatchNorm1d(_DynamicBatchNorm, nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` of the active channels."""


class DynamicBatchNorm2d(_DynamicBatchNorm, nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` of the active channels."""


class DynamicBatchNorm3d(_DynamicBatchNorm, nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d` of the active channels."""


class DynamicLayerNorm(Dynamic, nn.LayerNorm):
    """`torch.nn.LayerNorm` over the active channels only."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(input, self.normalized_shape, self.active("weight"), self.active("bias"), self.eps)


class DynamicGroupNorm(Dynamic, nn.GroupNorm):
    """`torch.nn.GroupNorm` over the active channels, equally many in every group."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.group_norm(input, self.num_groups, self.active("weight"), self.active("bias"), self.eps)


class DynamicPReLU(Dynamic, nn.PReLU):
    """`torch.nn.PReLU` with the slopes of the active channels."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.prelu(input, self.active("weight"))  # type: ignore[arg-type]


class DynamicModule(Dynamic):
    """Any other module, run while its own tensors are replaced by their active parts.

    Its hooks see the parts, too: some compute a weight. Outside of a call the tensors are whole, also for a function of
    the module that gradient checkpointing calls again, on its own, in the backward pass.
    """

    _static: type[nn.Module]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self._narrowed():
            return super().__call__(*args, **kwargs)  # type: ignore[misc]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with self._narrowed():
            return super().forward(*args, **kwargs)  # type: ignore[misc]

    @contextmanager
    def _narrowed(self) -> Iterator[None]:
        module: Any = self
        active = self._active
        normed = self._normed if active else None
        names = dict.fromkeys([*active, *(() if normed is None else normed.names)])
        places = [(name, *_place(module, name)) for name in names]
        whole = {name: store[key] for name, store, key in places}
        given = {name: take_active(tensor, active.get(name)) for name, tensor in whole.items()}
        if normed is not None:
            given[normed.scale] = rescaled_active(normed, whole, active)
        # A rescaled vector is not what the supernet has, unless the module writes another into it: in train mode.
        unwritten = None if normed is None else _version(given[normed.scale])
        for name, store, key in places:
            store[key] = given[name]
        module.__dict__["_active"] = {}
        try:
            yield
        finally:
            module.__dict__["_active"] = active
            for name, store, key in places:
                value = store.get(key)
                store[key] = whole[name]
                if value is None or not any(store is part._buffers for part in module.modules()):
                    continue
                if normed is None or name != normed.scale or _version(value) != unwritten or value is not given[name]:
                    put_active(whole[name], active.get(name), value)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _new_dynamic, (type(self)._static,), self.__dict__


_LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    layer.__bases__[-1]: layer
    for layer in (
        DynamicConv1d, DynamicConv2d, DynamicConv3d, DynamicConvTranspose1d, DynamicConvTranspose2d,
        DynamicConvTranspose3d, DynamicLinear, DynamicBatchNorm1d, DynamicBatchNorm2d, DynamicBatchNorm3d,
        DynamicLayerNorm, DynamicGroupNorm, DynamicPReLU,
    )
}  # fmt: skip
_TENSORS = frozenset({"weight", "bias", "running_mean", "running_var"})
_OTHERS: dict[type[nn.Module], type[nn.Module]] = {}


def dynamic_class(cls: type[nn.Module], tensors: Iterable[str]) -> type[nn.Module]:
    """The dynamic form of a module class; a subclass of it, made once, if the class or one of its tensors is unusual.

    Arguments:
        tensors: local names of the tensors that can be narrowed.
    """
    if cls in _LAYERS and _TENSORS.issuperset(tensors):
        return _LAYERS[cls]
    if cls not in _OTHERS:
        _OTHERS[cls] = type(f"Dynamic{cls.__name__}", (DynamicModule, cls), {"_static": cls, "__module__": __name__})
    return _OTHERS[cls]


def _place(module: nn.Module, name: str) -> tuple[dict[str, Any], str]:
    """Where a tensor of a module, or of a part of it, is kept, and by which key."""
    path, _, key = name.rpartition(".")
    holder = module.get_submodule(path)
    # In a replica of DataParallel parameters are plain attributes.
    return next(store for store in (holder._parameters, holder._buffers, holder.__dict__) if key in store), key


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _new_dynamic(cls: type[nn.Module]) -> nn.Module:
    made = dynamic_class(cls, ["anything"])
    return made.__new__(made)
