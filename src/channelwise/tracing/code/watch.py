"""Watches the user's code for what no operator shows: sizes and widths that are read, values that leave torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import cache, partial
from inspect import signature, unwrap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from channelwise.inputs.tree import tensors_in
from channelwise.structure import Cause, Reason
from channelwise.tracing.call import Call
from channelwise.tracing.code.sizes import WatchedSize, unwatched
from channelwise.tracing.context import TraceContext
from channelwise.tracing.labels import LabelSpace, along
from channelwise.tracing.provenance import Origin, Traced, traced_in

_ADAPTING = {
    torch.flatten,
    torch.Tensor.flatten,
    torch.chunk,
    torch.Tensor.chunk,
    torch.pixel_shuffle,
    torch.pixel_unshuffle,
    torch.prelu,
    torch._C._nn.linear,
    torch.matmul,
    torch.Tensor.matmul,
    torch.Tensor.__matmul__,
    torch.Tensor.__rmatmul__,
    torch.functional.einsum,
    torch.Tensor.expand_as,
    torch.Tensor.view_as,
    torch.Tensor.reshape_as,
    torch.functional.broadcast_tensors,
    torch.group_norm,
    nn.functional.instance_norm,
    torch.instance_norm,
    torch._C._nn.adaptive_avg_pool2d,
    torch._C._nn.adaptive_avg_pool3d,
    torch._C._nn.pad,
    torch.feature_dropout,
    torch.feature_alpha_dropout,
    nn.functional.dropout1d,
    nn.functional.dropout2d,
    nn.functional.dropout3d,
    nn.functional.feature_alpha_dropout,
}
"""Functions that compute every size from their input."""

_EXPANDING = {torch.Tensor.expand, torch.Tensor.expand_as, torch.Tensor.broadcast_to, torch.broadcast_to}

_RESHAPING = {torch.Tensor.view, torch.Tensor.reshape, torch.reshape}

_SHAPING = {*_RESHAPING, torch.Tensor.expand, torch.Tensor.broadcast_to, torch.broadcast_to}
"""Functions that are given the shape of their result."""

_UNFLATTENING = {torch.Tensor.unflatten, torch.unflatten}

_RECURRENT = {torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu}
"""Recurrent layers as wholes; one step of them (`torch.gru_cell`) is followed as what it is made of."""

_LEAVING = {
    torch.Tensor.numpy,
    torch.Tensor.__array__,
    torch.Tensor.tolist,
    torch.Tensor.__dlpack__,
    torch.Tensor.data_ptr,
}
"""Methods by which values leave torch, where no label can follow them."""


_MEASURING = {
    torch.Tensor.size,
    torch.Tensor.shape.__get__,  # type: ignore[attr-defined]
    torch.Tensor.numel,
    torch.Tensor.nelement,
    torch.Tensor.__len__,
}
"""Ways to read how many channels a tensor has."""

_COUNTING = {torch.Tensor.numel, torch.Tensor.nelement}

_OF_TORCH = f"{Path(torch.__file__).parent}{os.sep}"
_LAYERS_OF_TORCH = f"{Path(nn.modules.__file__).parent}{os.sep}"


class FunctionWatch(TorchFunctionMode):
    """Notices calls that need no verification because they adapt, sizes that are read, and values that leave torch."""

    def __init__(self, ctx: TraceContext) -> None:
        super().__init__()
        self.ctx = ctx

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        ctx = self.ctx
        if func in _LEAVING:
            ctx.operation = f"Tensor.{func.__name__}"
            ctx.use(args[:1])
            ctx.freeze_all(args[:1], "the values leave torch, where they cannot be followed")
        elif func in _MEASURING and not ctx.call.adapts:
            file = sys._getframe(1).f_code.co_filename
            if not file.startswith(_OF_TORCH) or file.startswith(_LAYERS_OF_TORCH):
                return self._measured(func, args, kwargs, ask=not file.startswith(_OF_TORCH))
        elif func in _EXPANDING and len(args) == 2 and (like := _like(args[1])) is not None:
            return self._expanded(args[0], like)
        args = tuple(unwatched(value) for value in args)
        kwargs = {name: unwatched(value) for name, value in kwargs.items()}
        if func in _RECURRENT:
            return self._recurrent(func, args, kwargs)
        if func is nn.functional.multi_head_attention_forward:
            return self._heads_of_torch(func, args, kwargs)
        if func is nn.functional.scaled_dot_product_attention and kwargs.get("scale") is None:
            # Where no kernel takes it as it is, it is made of products, of which none shows the factor.
            ctx.operation = func.__name__
            ctx.freeze_axes(args[0] if args else kwargs["query"], [-1], "scaled by the root of the width of a head")
        return self._while(ctx.call if ctx.call.adapts else _call_of(func, args, kwargs), func, args, kwargs)

    def _while(self, call: Call, func: Any, args: Any, kwargs: Any) -> Any:
        """What the function gives; meanwhile the rules know this ``call``."""
        ctx = self.ctx
        before, ctx.call = ctx.call, call
        try:
            return func(*args, **kwargs)
        finally:
            ctx.call = before

    def _measured(self, func: Any, args: Any, kwargs: Any, ask: bool) -> Any:
        """The number of elements along some axes, which the user's code may compute with, say as a scale."""
        result = func(*args, **kwargs)
        operation = f"Tensor.{func.__name__.replace('__get__', 'shape')}" if ask else ""
        if isinstance(result, torch.Size):
            return WatchedSize(result, partial(self._size_is_read, operation, args[0], result), args[0])
        if func in _COUNTING:
            for axis in range(args[0].ndim):
                self._size_is_read(operation, args[0], args[0].shape, axis)
            return result
        (axis,) = (*args[1:], *kwargs.values()) if func is torch.Tensor.size else (0,)
        return self._size_is_read(operation, args[0], args[0].shape, axis % args[0].ndim)

    def _size_is_read(self, operation: str, tensor: torch.Tensor, size: torch.Size, axis: int) -> int:
        """The length of an axis; that of labels remembers them. Torch's own code, without ``operation``, adapts."""
        ctx, length = self.ctx, size[axis]
        for m in ctx.maps(tensor):
            if m.axis == axis:
                if operation:
                    ctx.space.ask(m.labels, Reason(operation, ctx.module, "its size is read"))
                if m.uniform and length > 1:
                    origin = Origin(ctx.uses, read=m.flat, module=ctx.module)
                    length = Traced(length, ((origin, Fraction(1)),))
        return length

    def _expanded(self, tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """``tensor.expand(like.shape)``: its channels are those of ``like``, and so are those it is repeated for."""
        ctx = self.ctx
        result = self._while(ctx.call._replace(adapts=True), tensor.expand, (like.shape,), {})
        ctx.operation = "Tensor.expand"
        maps = list(ctx.maps(result))
        for axis in range(result.ndim):
            own, wanted = ctx.labels_on(result, axis), ctx.labels_on(like, axis)
            repeated = axis < result.ndim - tensor.ndim or tensor.shape[axis - result.ndim] == 1
            if repeated and wanted is not None:
                maps.append(along(wanted, axis, result.ndim, False))
            elif own is not None and wanted is not None:
                ctx.space.join(own, wanted)
            elif (known := own if own is not None else wanted) is not None:
                say = ctx.ask if ctx.is_fresh(tensor if own is None else like) else ctx.freeze
                say(known, "expanded to the shape of a tensor of fixed size")
        if maps:
            ctx.set(result, maps, ctx.is_weight(tensor))
        return result

    def _recurrent(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A layer over all steps: it keeps its widths, whatever operations it is made of on this device and type."""
        ctx = self.ctx
        ctx.operation = func.__name__
        labelled = [(tensor, maps) for tensor in tensors_in((args, kwargs)) if (maps := ctx.maps(tensor))]
        ctx.freeze_all([tensor for tensor, _ in labelled], "a recurrent layer keeps its widths", Cause.RECURRENT)
        weights = [ctx.is_weight(tensor) for tensor, _ in labelled]
        for (tensor, maps), weight in zip(labelled, weights, strict=True):
            for m in maps if weight and tensor.ndim == 2 else ():
                ctx.space.mark_role(m.labels, "input" if m.axis else "output")
            ctx.set(tensor, (), weight)
        try:
            return func(*args, **kwargs)
        finally:
            for (tensor, maps), weight in zip(labelled, weights, strict=True):
                ctx.set(tensor, maps, weight)

    def _heads_of_torch(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Torch's own attention loses whole heads; as its heads are together as wide as its queries, those with them.

        query (L, N, E); the output projection reads the heads, (E, E).
        """
        ctx = self.ctx
        given = signature(func).bind(*args, **kwargs).arguments
        query, heads = given["query"], given["num_heads"]
        call = ctx.call._replace(head_width=query.shape[2] // heads, repeats=int(heads))
        result = self._while(call, func, args, kwargs)
        ctx.operation = "multi_head_attention_forward"
        stream, inner = ctx.labels_on(query, 2), ctx.labels_on(given["out_proj_weight"], 1)
        if stream is not None and inner is not None:
            ctx.space.join(stream, inner)
        elif inner is not None:
            ctx.freeze(inner, "heads are together as wide as the queries, which have a fixed width")
        return result


def _call_of(func: Any, args: Any, kwargs: Any) -> Call:
    """What a function is given."""
    sizes: tuple[int, ...] = ()
    if func in _SHAPING:
        given = kwargs.get("shape", kwargs.get("size"))
        if given is None:
            given = args[1] if len(args) == 2 and isinstance(args[1], (tuple, list)) else args[1:]
        sizes = tuple(given)
    elif func in _UNFLATTENING:
        x, dim, lengths = signature(torch.Tensor.unflatten).bind(*args, **kwargs).args
        if isinstance(dim, int) and all(isinstance(n, int) for n in lengths):
            dim %= x.ndim
            sizes = (*x.shape[:dim], *lengths, *x.shape[dim + 1 :])
    free_axis = sizes.index(-1) if func not in _EXPANDING and -1 in sizes else None
    return Call(func in _ADAPTING, tuple(traced_in((*args, *kwargs.values()))), sizes, free_axis)


_WIDTHS = {
    "in_channels",
    "out_channels",
    "in_features",
    "out_features",
    "num_features",
    "num_channels",
    "normalized_shape",
    "num_parameters",
}
"""Attributes that surgery corrects."""


Axes = Sequence[np.ndarray | None]
"""The labels of every axis of a tensor."""


def _like(size: Any) -> torch.Tensor | None:
    """The tensor of which another one shall get the shape."""
    if type(size) is WatchedSize:
        return size.of
    return size if isinstance(size, torch.Tensor) else None


def ask_where_widths_are_read(model: nn.Module, space: LabelSpace, axes: Mapping[str, Axes]) -> None:
    """Code that reads a corrected attribute while it runs may compute with it, which no operation would show."""
    readers = [name for name, module in model.named_modules() if _reads_widths(type(module))]  # type: ignore[arg-type]
    for reader in readers:
        reason = Reason("attribute", reader, "a number of channels is read from an attribute")
        for name, of_tensor in axes.items():
            if not reader or name.startswith(f"{reader}."):
                for labels in of_tensor:
                    if labels is not None:
                        space.ask(labels, reason)


@cache
def _reads_widths(cls: Any) -> bool:
    """Whether ``forward``, or a method that it names, reads such an attribute in code that is not torch's own."""
    return bool(names_reached(cls, "forward") & _WIDTHS)


def names_reached(cls: Any, start: str) -> frozenset[str]:
    """All names in the code of a method and of the methods that it names, as far as it is not torch's own code."""
    reached, todo = {start}, {start}
    while todo:
        method = getattr(cls, todo.pop(), None)
        function = unwrap(method.fget if isinstance(method, property) else method)  # type: ignore[arg-type]
        code = getattr(function, "__code__", None)
        if code is None or code.co_filename.startswith(_OF_TORCH):
            continue
        names = _names_in(code)
        todo |= names - reached
        reached |= names
    return frozenset(reached)


def _names_in(code: Any) -> set[str]:
    inner = (c for c in code.co_consts if hasattr(c, "co_names"))
    return set(code.co_names).union(*map(_names_in, inner))
