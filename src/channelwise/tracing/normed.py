"""Which weights of a model torch divides by a norm of themselves: weight norm and spectral norm, in both forms."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from channelwise.structure import NormedWeight
from channelwise.tensors import named_tensors


def normed_weights(model: nn.Module) -> list[NormedWeight]:
    """Such weights, a shared one by its first name."""
    first: dict[int, str] = {}
    names = {name: first.setdefault(id(tensor), name) for name, tensor in named_tensors(model).items()}
    found: dict[str, NormedWeight] = {}
    for path, module in model.named_modules():
        inside = f"{path}." if path else ""
        for one in (*_parametrized(module), *_hooked(module)):
            right = None if one.right is None else names[inside + one.right]
            named = NormedWeight(names[inside + one.weight], names[inside + one.scale], one.axis, right)
            found.setdefault(named.weight, named)
    return list(found.values())


def _parametrized(module: nn.Module) -> Iterator[NormedWeight]:
    """Of a list of parametrizations, those that come first: what a later one divides is no parameter."""
    if not isinstance(module, ParametrizationList) or not len(module):
        return
    norm, originals = module[0], dict(module.named_parameters(recurse=False))
    if isinstance(norm, parametrizations._WeightNorm):
        yield NormedWeight("original1", "original0", _axis(norm.dim, originals["original1"].ndim))
    elif isinstance(norm, parametrizations._SpectralNorm) and originals["original"].ndim > 1:
        yield NormedWeight("original", "0._u", int(norm.dim), "0._v")


def _hooked(module: nn.Module) -> Iterator[NormedWeight]:
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            direction = getattr(module, f"{hook.name}_v")
            yield NormedWeight(f"{hook.name}_v", f"{hook.name}_g", _axis(hook.dim, direction.ndim))
        elif isinstance(hook, SpectralNorm):
            yield NormedWeight(f"{hook.name}_orig", f"{hook.name}_u", int(hook.dim), f"{hook.name}_v")


def _axis(dim: int, ndim: int) -> int | None:
    """Weight norm takes -1 for one norm of all."""
    return None if dim == -1 else int(dim) % ndim
