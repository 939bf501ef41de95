"""What the layers of a network give: compared where what it returns tells nothing, a detector that finds no box."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from channelwise.inputs.tree import tensors_in
from channelwise.verify.comparing import Both, Maker, difference, nudged, run_once

Call = tuple[str, int]
"""A layer by its name, and which of the tensors that it returned one after another."""

_Seen = tuple[torch.Size, torch.Tensor]
"""The shape of an output, and some of its elements."""

_ENOUGH = 2**12
"""Elements that are compared of an output at least, if it has them: all outputs of a network would fill the memory."""


def tell(outputs: Sequence[torch.Tensor]) -> bool:
    """Whether outputs show what is computed: none is empty, and one at least is no constant, all NaN for example."""
    return all(t.numel() for t in outputs) and any(map(_varies, outputs))


def _varies(output: torch.Tensor) -> bool:
    if not (output.is_floating_point() or output.is_complex()):
        return False
    values = torch.view_as_real(output) if output.is_complex() else output
    finite = values[values.isfinite()]
    return finite.numel() == 1 or bool((finite != finite[:1]).any())


def of_layers(slim: Maker, masked: Maker, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Both:
    """What layers give of which the outputs have the same shape in both models: they keep all channels."""
    one, other = _seen(slim(), args, kwargs), _seen(masked(), args, kwargs)
    both = [call for call, (shape, _) in other.items() if call in one and one[call][0] == shape]
    return [one[call][1] for call in both], [other[call][1] for call in both]


def of_stable_layers(slim: Maker, masked: Maker, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Both:
    """The same without those behind a choice that rounding decides: which of equal boxes come first."""
    noisy = _seen(masked(), args, kwargs, noise=True)
    one, other = _seen(slim(), args, kwargs), _seen(masked(), args, kwargs)
    found: Both = ([], [])
    for call, (shape, output) in other.items():
        if call in one and call in noisy and one[call][0] == noisy[call][0] == shape:
            if difference([noisy[call][1]], [output]) is None:
                found[0].append(one[call][1])
                found[1].append(output)
    return found


def _seen(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], noise: bool = False) -> dict[Call, _Seen]:
    """What modules with parameters of their own return; ``noise``: with as much of it as rounding makes in each."""
    found: dict[Call, _Seen] = {}
    counts: Counter[str] = Counter()

    def look(name: str, module: nn.Module, inputs: Any, output: Any) -> Any:
        for tensor in tensors_in(output, attributes=True):
            found[name, counts[name]] = tensor.shape, _some(tensor)
            counts[name] += 1
        return nudged(output) if noise else None

    for name, module in model.named_modules():
        if module._parameters:
            module.register_forward_hook(partial(look, name))
    run_once(model, args, kwargs)
    return found


def _some(output: torch.Tensor) -> torch.Tensor:
    """A copy, as what follows may work in place; of a large output, some elements of every part of it."""
    flat = output.reshape(-1)
    # An odd step meets all positions along axes whose lengths are even.
    return flat[:: flat.numel() // _ENOUGH | 1].clone()
