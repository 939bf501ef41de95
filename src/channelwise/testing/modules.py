"""Models under test: random statistics, prunable output channels, modules that are true to their tensors."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from channelwise.structure import Structure


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Give every constant parameter, and every constant buffer with more than one element, random values in place.

    Fresh normalisations have scale 1, shift 0, mean 0 and variance 1, and residual branches often a scale of 0 or of
    1e-6: with those values a wrong pruning would go unnoticed.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = {id(p) for p in model.parameters()}
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point() or tensor.numel() == 0 or not bool((tensor == tensor.flatten()[0]).all()):
                continue
            first = tensor.flatten()[0].item()
            if tensor.numel() == 1 and (first != 0 or id(tensor) not in parameters):
                continue
            noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
            positive = first != 0 or name.endswith("var")
            scale = first if abs(first) > 0.1 else 1.0
            tensor.copy_(scale * (0.5 + noise) if positive else 0.6 * noise - 0.2)


def settle_statistics(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], seed: int = 0) -> None:
    """Give batch norms about the statistics of this batch, in place, where the model runs in train mode.

    With statistics that have nothing to do with the activations, maps fade away on the way through a deep network, and
    with them whatever a wrong pruning did.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_var is not None]
    if not norms:
        return
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settings = [(m, m.momentum) for m in norms]
    flags = [(m, m.training) for m in model.modules()]
    try:
        for norm in norms:
            norm.momentum = 1.0
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model.train()(*copy.deepcopy(args), **copy.deepcopy(dict(kwargs)))
            for norm in norms:
                variance = norm.running_var
                assert variance is not None
                variance.mul_(0.7 + 0.6 * torch.rand(variance.shape, dtype=torch.float64).to(variance)).clamp_min_(1e-3)
    except Exception:  # many a model runs in eval mode only
        model.load_state_dict(before)
    finally:
        for norm, momentum in settings:
            norm.momentum = momentum
        for module, training in flags:
            module.training = training


def prunable_share(model: nn.Module, structure: Structure) -> float:
    """The share of the output channels of all convolution and linear modules that belong to a channel group."""
    masks = prunable_outputs(model, structure)
    total = sum(mask.size for mask in masks.values())
    return sum(int(mask.sum()) for mask in masks.values()) / total if total else 0.0


def prunable_outputs(model: nn.Module, structure: Structure) -> dict[str, np.ndarray]:
    """For every convolution and linear module, a mask of shape (output channels,): may this channel be removed?"""
    names = {id(t): n for n, t in model.named_parameters(remove_duplicate=False) if n in structure.tensors}
    prunable: dict[tuple[str, int], np.ndarray] = {}
    for group in structure.groups:
        for slots in group.slots:
            size = structure.tensors[slots.tensor].slots(slots.axis)
            prunable.setdefault((slots.tensor, slots.axis), np.zeros(size, bool))[slots.index.ravel()] = True
    masks = {}
    for name, module in model.named_modules():
        transposed = False
        if isinstance(module, nn.modules.conv._ConvNd):
            size, transposed = module.out_channels, module.transposed
        elif isinstance(module, nn.Linear):
            size = module.out_features
        else:
            continue
        mask = np.zeros(size, bool)
        for tensor in module.parameters():
            found = prunable.get((names[id(tensor)], int(transposed and tensor.dim() > 1)))
            if found is not None and found.size == size:
                mask |= found
        masks[name] = mask
    return masks


def check_modules(model: nn.Module, slim: nn.Module) -> None:
    """Assert that ``slim`` consists of the same modules of the same classes with attributes true to their tensors."""
    ours = dict(slim.named_modules())
    for name, module in model.named_modules():
        assert name in ours, f"the slim model lacks module {name!r}"
        other = ours.pop(name)
        where = f"slim module {name!r} ({type(module).__name__})"
        # Torch makes a class for every module with a parametrisation.
        assert parametrize.type_before_parametrizations(other) is parametrize.type_before_parametrizations(module), (
            f"{where} became a {type(other).__name__}"
        )
        assert other.training == module.training, f"{where} changed its training flag"
        for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"):
            assert len(getattr(other, hooks)) == len(getattr(module, hooks)), f"{where} gained or lost {hooks}"
        _check_attributes(other, where)
    assert not ours, f"the slim model has additional modules: {sorted(ours)}"
    theirs = dict(model.named_parameters())
    for name, parameter in slim.named_parameters():
        assert parameter.requires_grad == theirs[name].requires_grad, f"requires_grad of {name} changed"
        assert parameter.dtype == theirs[name].dtype, f"dtype of {name} changed"
        assert parameter.is_leaf, f"{name} is not a leaf"


def _check_attributes(module: nn.Module, where: str) -> None:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return
    expected: dict[str, Any] = {}
    if isinstance(module, nn.modules.conv._ConvNd):
        wide = weight.shape[1] * module.groups
        out, into = (wide, weight.shape[0]) if module.transposed else (weight.shape[0], wide)
        expected = {"out_channels": out, "in_channels": into}
    elif isinstance(module, nn.Linear):
        expected = {"out_features": weight.shape[0], "in_features": weight.shape[1]}
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        expected = {"num_features": weight.shape[0]}
    elif isinstance(module, nn.GroupNorm):
        expected = {"num_channels": weight.shape[0]}
    elif isinstance(module, nn.LayerNorm):
        expected = {"normalized_shape": tuple(weight.shape)}
    elif isinstance(module, nn.PReLU):
        expected = {"num_parameters": weight.shape[0]}
    for attribute, value in expected.items():
        found = getattr(module, attribute)
        assert found == value, f"{where}: {attribute} is {found} but the weight has shape {tuple(weight.shape)}"
