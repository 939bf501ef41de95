"""Fixers of the layers that PyTorch brings; each sets the attributes that describe channels, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from channelwise.surgery.attributes import Kept, fixer


@fixer(_ConvNd, attributes=("in_channels", "out_channels", "groups"))
def fix_convolution(module: Any, sizes: Kept) -> None:
    """Weight (O, I / g, …), transposed (I, O / g, …); depthwise groups follow the channels, other groups stay."""
    weight = sizes.shape(module, "weight")
    if weight is None:
        return
    rows, columns = weight[:2]
    wide, narrow = ("output", module.out_channels) if module.transposed else ("input", module.in_channels)
    groups = module.groups
    seen = sizes.length(wide, -len(module.kernel_size) - 1, narrow)
    if groups > 1 and seen is not None:
        groups = seen // columns
    elif groups > 1 and groups == module.in_channels:
        multiplier = 1 if module.transposed else module.out_channels // module.in_channels
        groups = rows // multiplier
    module.groups = groups
    first, second = ("in_channels", "out_channels") if module.transposed else ("out_channels", "in_channels")
    setattr(module, first, rows)
    setattr(module, second, columns * groups)
    kernel = tuple(weight[2:])
    if kernel != module.kernel_size and len(kernel) == 2 and kernel[0] == kernel[1]:
        # Loaded from a subnet of a supernet, whose kernel is the middle of the original's.
        module.__dict__.update(kernel_attributes(module.__dict__, module.dilation, kernel[0]))


def kernel_attributes(original: Mapping[str, Any], dilation: tuple[int, ...], side: int) -> dict[str, Any]:
    """``kernel_size`` and ``padding`` of a convolution with a kernel of ``side``."""
    full, padding = original["kernel_size"][0], original["padding"]
    if not isinstance(padding, str):
        padding = tuple(p - (full - side) // 2 * d for p, d in zip(padding, dilation, strict=True))
    both = [d * (side - 1) // 2 for d in dilation]
    if isinstance(padding, str):
        reversed_twice = [amount for one in reversed(both) for amount in (one, one)]
    else:
        reversed_twice = [amount for p in reversed(padding) for amount in (p, p)]
    return {
        "kernel_size": (side, side),
        "padding": padding,
        "_reversed_padding_repeated_twice": type(original["_reversed_padding_repeated_twice"])(reversed_twice),
    }


@fixer(nn.Linear, attributes=("in_features", "out_features"))
def fix_linear(module: Any, sizes: Kept) -> None:
    """Weight (O, I)."""
    weight = sizes.shape(module, "weight")
    if weight is not None:
        module.out_features, module.in_features = weight


@fixer(nn.Embedding, attributes=("num_embeddings", "embedding_dim"))
def fix_embedding(module: Any, sizes: Kept) -> None:
    """Weight (N, D)."""
    weight = sizes.shape(module, "weight")
    if weight is not None:
        module.num_embeddings, module.embedding_dim = weight


@fixer(_BatchNorm, attributes=("num_features",))
def fix_batch_norm(module: Any, sizes: Kept) -> None:
    """Per-channel tensors (C,); without any, the input (N, C, …)."""
    length = _per_channel(module, sizes)
    if length is None:
        length = sizes.length("input", 1, module.num_features)
    if length is not None:
        module.num_features = length


@fixer(_InstanceNorm, attributes=("num_features",))
def fix_instance_norm(module: Any, sizes: Kept) -> None:
    """Per-channel tensors (C,); without any, the input (N, C, …) or, unbatched, (C, …)."""
    length = _per_channel(module, sizes)
    if length is None:
        length = sizes.length("input", -module._get_no_batch_dim(), module.num_features)
    if length is not None:
        module.num_features = length


@fixer(nn.GroupNorm, attributes=("num_channels", "num_groups"))
def fix_group_norm(module: Any, sizes: Kept) -> None:
    """Weight (C,), else the input (N, C, …); one group per channel stays that, other group counts stay."""
    length = _per_channel(module, sizes)
    if length is None:
        length = sizes.length("input", 1, module.num_channels)
    if length is None:
        return
    if module.num_groups == module.num_channels:
        module.num_groups = length
    module.num_channels = length


@fixer(nn.LayerNorm, nn.RMSNorm, attributes=("normalized_shape",))
def fix_layer_norm(module: Any, sizes: Kept) -> None:
    """The weight's shape, else the last axes of the input; a channels-first subclass may normalise axis 1."""
    weight = sizes.shape(module, "weight")
    if weight is None and sizes.input is not None:
        before, after = sizes.input
        shape = tuple(module.normalized_shape)
        if before[-len(shape) :] == shape:
            weight = after[-len(shape) :]
        elif before[1:2] == shape:
            weight = after[1:2]
    if weight is not None:
        module.normalized_shape = weight


@fixer(nn.PReLU, attributes=("num_parameters",))
def fix_prelu(module: Any, sizes: Kept) -> None:
    """Weight (C,) or (1,)."""
    weight = sizes.shape(module, "weight")
    if weight is not None:
        (module.num_parameters,) = weight


@fixer(nn.MultiheadAttention, attributes=("embed_dim", "kdim", "vdim", "num_heads"))
def fix_attention(module: Any, sizes: Kept) -> None:
    """in_proj_weight (3 E, E), else q_proj_weight (E, E), k_proj_weight (E, K), v_proj_weight (E, V)."""
    packed, query = sizes.shape(module, "in_proj_weight"), sizes.shape(module, "q_proj_weight")
    if packed is not None:
        module.embed_dim = module.kdim = module.vdim = packed[1]
    elif query is not None:
        module.embed_dim = query[0]
        for name, weight in (("kdim", "k_proj_weight"), ("vdim", "v_proj_weight")):
            shape = sizes.shape(module, weight)
            if shape is not None:
                setattr(module, name, shape[1])
    module.num_heads = module.embed_dim // module.head_dim


@fixer(nn.Unflatten, attributes=("unflattened_size",))
def fix_unflatten(module: Any, sizes: Kept) -> None:
    """The output's axes from ``dim`` on; an axis given as -1 goes on finding its own length."""
    if sizes.input is None or sizes.output is None or not isinstance(module.dim, int):
        return
    start = module.dim % len(sizes.input[0])
    old = tuple(module.unflattened_size)
    before, after = (shape[start : start + len(old)] for shape in sizes.output)
    if all(o in (-1, b) for o, b in zip(old, before, strict=True)):
        module.unflattened_size = tuple(-1 if o == -1 else a for o, a in zip(old, after, strict=True))


def _per_channel(module: Any, sizes: Kept) -> int | None:
    """Length of the first tensor that a norm keeps per channel."""
    for name in ("weight", "bias", "running_mean", "running_var"):
        shape = sizes.shape(module, name)
        if shape is not None:
            return shape[0]
    return None
