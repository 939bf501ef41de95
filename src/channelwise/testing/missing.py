"""Runs a model's own code as if removed channels were not there: their slots are NaN, which operators leave out.

Zeroing channels is not removing them where code counts channels: in a layer norm, in a mean over channels. This way
stands for the removal there, too, and shares nothing with the rules and the surgery that it judges.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from channelwise.inputs.tree import tensors_in
from channelwise.selection import Selection, removed_channels
from channelwise.structure import Structure
from channelwise.surgery import clone_module
from channelwise.surgery.cuts import cut_tensors
from channelwise.surgery.normed import rescale

_ELEMENTWISE = {"_prelu_kernel", "_to_copy", "fill", "hardswish", "zero"}
"""Operators that work element by element and that torch does not tag as such."""

_MOVES = re.compile(
    r"cat|stack|clone|copy|detach|index|index_select|index_put|gather|scatter|\w+_scatter|\w+_pad\w*|flip|roll|repeat|"
    r"pixel_\w+|channel_shuffle|upsample_\w+|_upsample_\w+|\w+_pool\w*|im2col|col2im|grid_sampler\w*|embedding|"
    r"_unsafe_view|tril|triu|repeat_interleave|native_dropout|glu|log_sigmoid_forward|rot90|new_\w+|\w+_like"
)
"""Operators that put elements elsewhere, or look at those of one channel together: NaN stays where the channel is."""


def with_holes(model: nn.Module, structure: Structure, selection: Selection) -> nn.Module:
    """A copy of ``model`` with NaN in all removed slots of floating point and complex tensors.

    Weights that are divided by their norms are, with holes, what they were without.
    """
    model = clone_module(model, {})
    rescale(model, cut_tensors(structure, selection))
    tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    removed = removed_channels(structure, selection)
    for group in structure.groups:
        for slots in group.slots if group.name in removed else ():
            tensor, info = tensors[slots.tensor].detach(), structure.tensors[slots.tensor]
            if not _has_nan(tensor):
                continue
            gone = torch.from_numpy(slots.index[removed[group.name]].ravel()).to(tensor.device)
            if slots.axis != 1:
                tensor.index_fill_(slots.axis, gone, math.nan)
                continue
            for block, rows in enumerate(tensor.chunk(info.blocks)):
                columns = gone - block * info.shape[1]
                rows.index_fill_(1, columns[(columns >= 0) & (columns < info.shape[1])], math.nan)
    return model


Numbers = tuple[str, tuple[float, ...]]
"""The name of an operator, and the numbers that it was called with."""


class Missing(TorchDispatchMode):
    """Operators compute without those elements of their inputs that are NaN.

    ``unclear``: operators that may not have left them out. What comes of them says nothing about a slim model.
    ``numbers``: those that element-wise operators compute with, in the order of the calls. ``instead``: others to take.
    """

    def __init__(self, instead: Sequence[Numbers] = ()) -> None:
        super().__init__()
        self.unclear: set[str] = set()
        self.numbers: list[Numbers] = []
        self.instead = instead
        # Integers and truth values cannot be NaN.
        self.holes = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        if "empty" in name:
            return func(*args, **kwargs).zero_()  # what is in the memory may be NaN
        elementwise = torch.Tag.pointwise in func.tags or (name not in _RULES and _is_elementwise(func.overloadpacket))
        if elementwise:
            args, kwargs = self._with_numbers(name, args, kwargs)
        tensors = tensors_in((args, kwargs))
        holes = [self._holes_of(t) for t in tensors]
        if not any(h is not None for h in holes):
            return func(*args, **kwargs)
        if torch.Tag.nondeterministic_seeded in func.tags:
            return func(*args, **kwargs)
        if elementwise:
            return self._elementwise(func(*args, **kwargs), holes)
        lost = [h for t, h in zip(tensors, holes, strict=True) if t in self.holes]
        if lost and func.is_view:
            out = func(*args, **kwargs)
            self.holes[out] = func(lost[0], *args[1:], **kwargs)
            return out
        if not lost and name in _RULES:
            try:
                return self._elementwise(_RULES[name](_Call(func, args, kwargs)), [])
            except _UnclearError:
                pass
        elif not lost and (func.is_view or _MOVES.fullmatch(name.rstrip("_"))):
            return func(*args, **kwargs)
        self.unclear.add(name)
        return func(*args, **kwargs)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Else torch would wrap the method above for its compiler.
        return False

    def _with_numbers(self, name: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
        numbers = tuple(filter(_is_number, (*args, *kwargs.values())))
        self.numbers.append((name, numbers))
        others = iter(self.instead[len(self.numbers) - 1][1] if self.instead else numbers)
        args = tuple(next(others) if _is_number(a) else a for a in args)
        return args, {key: next(others) if _is_number(a) else a for key, a in kwargs.items()}

    def _holes_of(self, tensor: Tensor) -> Tensor | None:
        holes = tensor.isnan() if _has_nan(tensor) else self.holes.get(tensor)
        return holes if holes is not None and holes.any() else None

    def _elementwise(self, out: Any, holes: list[Tensor | None]) -> Any:
        """Results are missing where one of the inputs is; numbers of elements that were left out say nothing."""
        for tensor in tensors_in(out):
            missing = torch.zeros(tensor.shape, dtype=torch.bool, device=tensor.device)
            for h in holes:
                missing |= h if h is not None else False
            if _has_nan(tensor):
                tensor.masked_fill_(missing, math.nan)
            else:
                self.holes[tensor] = missing if holes else ~missing
        return out


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _has_nan(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


@cache
def _is_elementwise(packet: Any) -> bool:
    name = packet.__name__.rstrip("_")
    packets = (packet, getattr(torch.ops.aten, name, packet))
    tagged = (torch.Tag.pointwise in getattr(p, overload).tags for p in packets for overload in p.overloads())
    return name in _ELEMENTWISE or any(tagged)


class _UnclearError(Exception):
    """An operator cannot be computed without the missing elements."""


class _Call:
    """A call of an operator, with its arguments by name."""

    def __init__(self, func: Any, args: Any, kwargs: Any) -> None:
        self.func, self.schema = func, func._schema.arguments
        given = {a.name: a.default_value for a in self.schema}
        self.given = {**given, **dict(zip(given, args, strict=False)), **kwargs}

    def __getitem__(self, name: str) -> Any:
        return self.given.get(name)

    def run(self, /, **changed: Any) -> Any:
        """The operator on these arguments, some of them ``changed``."""
        given = {**self.given, **changed}
        positional = [given[a.name] for a in self.schema if not a.kwarg_only]
        return self.func(*positional, **{a.name: given[a.name] for a in self.schema if a.kwarg_only})


_RULES: dict[str, Callable[[_Call], Any]] = {}


def _rule(*names: str) -> Callable[[Callable[[_Call], Any]], Callable[[_Call], Any]]:
    def register(function: Callable[[_Call], Any]) -> Callable[[_Call], Any]:
        _RULES.update(dict.fromkeys(names, function))
        return function

    return register


class _Rows:
    """The elements of ``x`` that are there, one row for each index of the axes not in ``axes``, all equally long."""

    def __init__(self, x: Tensor, axes: Collection[int]) -> None:
        self.order = [*(a for a in range(x.ndim) if a not in axes), *sorted(axes)]
        moved, self.like = x.permute(self.order), x
        self.shape, self.outer = moved.shape, moved.shape[: x.ndim - len(axes)]
        flat = moved.reshape(math.prod(self.outer), -1)
        holes = flat.isnan()
        counts = (~holes).sum(1)
        self.length = int(counts.max()) if counts.numel() else 0
        self.empty = counts == 0
        if not self.length or bool(((counts != self.length) & ~self.empty).any()):
            raise _UnclearError
        self.index = holes.to(torch.uint8).argsort(dim=1, stable=True)[:, : self.length]
        self.values = flat.gather(1, self.index)

    def back(self, values: Tensor) -> Tensor:
        """Values (rows, length) in their places in a tensor of the shape of ``x``, which is NaN elsewhere."""
        flat = values.new_full((len(values), math.prod(self.shape[len(self.outer) :])), math.nan)
        flat.scatter_(1, self.index, values.masked_fill(self.empty[:, None], math.nan))
        placed = flat.reshape(self.shape).permute([self.order.index(a) for a in range(len(self.order))])
        return torch.empty_like(self.like, dtype=values.dtype).copy_(placed)


def _filled(tensor: Tensor) -> Tensor:
    return tensor.masked_fill(tensor.isnan(), 0)


def _there(tensor: Tensor) -> Tensor:
    return (~tensor.isnan()).to(tensor.dtype)


_FACTORS = {
    "mm": ("self", "mat2"),
    "bmm": ("self", "mat2"),
    "mv": ("self", "vec"),
    "dot": ("self", "tensor"),
    "vdot": ("self", "other"),
    "addmm": ("mat1", "mat2"),
    "addmv": ("mat", "vec"),
    "baddbmm": ("batch1", "batch2"),
    "addbmm": ("batch1", "batch2"),
    "linear": ("input", "weight"),
}


@_rule(*_FACTORS)
def _product(call: _Call) -> Tensor:
    """Sums over products of what is there on both sides; missing where there is nothing to add up."""
    name = call.func.overloadpacket.__name__
    factors = {factor: call[factor] for factor in _FACTORS[name]}
    out = call.run(**{factor: _filled(t) for factor, t in factors.items()})
    added = {"bias": None} if name == "linear" else {"self": torch.zeros_like(call["self"])}
    counts = call.run(**(added | {factor: _there(t) for factor, t in factors.items()}))
    return out.masked_fill(counts == 0, math.nan)


@_rule("convolution")
def _convolution(call: _Call) -> Tensor:
    """The same over the channels of a convolution. Along an axis that the kernel moves over neighbours close up."""
    x, weight = call["input"], call["weight"]
    channels, gaps = x.isnan().flatten(2).all(2), weight.isnan().flatten(2).all(2)
    if not _spread(x, channels):
        return _closed_up(call, x)
    if not _spread(weight, gaps):
        raise _UnclearError
    out = call.run(input=_filled(x), weight=_filled(weight))
    counts = call.run(
        input=(~channels)[..., None].to(x.dtype),
        weight=(~gaps)[..., None].to(x.dtype),
        bias=None,
        stride=[1],
        padding=[0],
        dilation=[1],
        output_padding=[0],
    )
    return out.masked_fill((counts == 0).reshape(*out.shape[:2], *[1] * (out.ndim - 2)), math.nan)


def _spread(tensor: Tensor, holes: Tensor) -> bool:
    """Whether all of a row and column of the first two axes is missing or nothing of it."""
    return torch.equal(tensor.isnan(), holes.reshape(*holes.shape, *[1] * (tensor.ndim - 2)).expand_as(tensor))


def _closed_up(call: _Call, x: Tensor) -> Tensor:
    for axis in range(2, x.ndim):
        gone = x.isnan().movedim(axis, 0).flatten(1)
        kept = (~gone.all(1)).nonzero().flatten()
        if len(kept) == len(gone) or gone[kept].any():
            continue
        out = _convolution(_Call(call.func, (), call.given | {"input": x.index_select(axis, kept)}))
        if out.shape[axis] == len(kept):
            shape = [*out.shape[:axis], x.shape[axis], *out.shape[axis + 1 :]]
            return out.new_full(shape, math.nan).index_copy(axis, kept, out)
    raise _UnclearError


@_rule("mean", "nanmean", "sum", "nansum", "prod", "amax", "amin", "max", "min", "median", "any", "all", "logsumexp")
@_rule("var", "std", "var_mean", "std_mean", "linalg_vector_norm", "norm", "aminmax")
def _reduction(call: _Call) -> Any:
    x, dim = call["self"], call["dim"]
    axes = range(x.ndim) if dim is None or dim == [] else [d % x.ndim for d in ([dim] if isinstance(dim, int) else dim)]
    rows = _Rows(x, axes)
    if "dim" not in call.given:
        return call.run(self=rows.values)
    found = call.run(self=rows.values, dim=-1 if isinstance(dim, int) else [-1], keepdim=False)
    shape = [1 if a in axes else n for a, n in enumerate(x.shape)] if call["keepdim"] else rows.outer

    def shaped(out: Tensor) -> Tensor:
        return (out.masked_fill(rows.empty, math.nan) if _has_nan(out) else out).reshape(shape)

    return tuple(map(shaped, found)) if isinstance(found, (tuple, list)) else shaped(found)


@_rule("_softmax", "_log_softmax", "_safe_softmax", "cumsum")
def _along(call: _Call) -> Tensor:
    x = call["self"]
    rows = _Rows(x, [call["dim"] % x.ndim])
    return rows.back(call.run(self=rows.values, dim=1))


@_rule("native_layer_norm", "_fused_rms_norm")
def _layer_norm(call: _Call) -> Any:
    x = call["input"]
    rows = _Rows(x, range(x.ndim - len(call["normalized_shape"]), x.ndim))
    without = {name: None for name in ("weight", "bias") if name in call.given}
    out, *others = call.run(input=rows.values, normalized_shape=[rows.length], **without)
    return _affine(rows.back(out), call["weight"], call["bias"]), *others


@_rule("native_group_norm")
def _group_norm(call: _Call) -> Any:
    x = call["input"]
    rows = _Rows(x.reshape(call["N"], call["group"], -1), [2])
    return _normalised(call, x, rows)


@_rule("native_batch_norm", "_native_batch_norm_legit", "_batch_norm_with_update", "cudnn_batch_norm")
def _batch_norm(call: _Call) -> Any:
    if not (call["training"] or "update" in call.func.overloadpacket.__name__):
        return call.run()
    x = call["input"]
    return _normalised(call, x, _Rows(x, [a for a in range(x.ndim) if a != 1]))


def _normalised(call: _Call, x: Tensor, rows: _Rows) -> Any:
    eps = call["eps"] if "eps" in call.given else call["epsilon"]
    out = rows.back(F.layer_norm(rows.values, (rows.length,), eps=eps)).reshape(x.shape)
    shape = [-1 if a == 1 else 1 for a in range(x.ndim)]
    weight, bias = (t if t is None else t.reshape(shape) for t in (call["weight"], call["bias"]))
    return _affine(out, weight, bias), *[out.new_zeros(0) for _ in call.func._schema.returns[1:]]


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


@_rule("constant_pad_nd")
def _padded(call: _Call) -> Tensor:
    """What is put around a channel is missing with it; channels that are put beside others are there."""
    pad, holes = call["pad"], call["self"].isnan()
    if min(pad) < 0:
        raise _UnclearError
    for k in range(0, len(pad), 2):
        axis = holes.ndim - 1 - k // 2
        edge = holes.all(axis, keepdim=True)
        holes = torch.cat([*[edge] * pad[k], holes, *[edge] * pad[k + 1]], axis)
    return call.run().masked_fill(holes, math.nan)


@_rule("max_unpool2d", "max_unpool3d")
def _unpooled(call: _Call) -> Tensor:
    x, out = call["self"], call.run()
    return out.masked_fill(x.isnan().flatten(2).all(2).reshape(*x.shape[:2], *[1] * (x.ndim - 2)), math.nan)


@_rule("_weight_norm_interface")
def _weight_norm(call: _Call) -> Any:
    v, g, dim = call["v"], call["g"], call["dim"] or 0
    rows = _Rows(v, [a for a in range(v.ndim) if a != dim % v.ndim])
    norm = rows.values.norm(dim=1).reshape([-1 if a == dim % v.ndim else 1 for a in range(v.ndim)])
    return v * (g / norm), norm
