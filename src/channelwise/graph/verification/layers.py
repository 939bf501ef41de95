"""What the layers of a network give: compared where what it returns tells nothing, a detector that finds no box."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

from channelwise.graph.outputs import output_tensors
from channelwise.graph.verification.comparing import Maker, run_once

Call = tuple[str, int]
"""A layer by its name, and which of the tensors that it returned one after another."""

T = TypeVar("T")


def tell(outputs: Sequence[torch.Tensor]) -> bool:
    """Whether outputs show what is computed: none is empty, and one at least is no constant, all NaN for example."""
    return all(t.numel() for t in outputs) and any(map(_varies, outputs))


def _varies(output: torch.Tensor) -> bool:
    if not (output.is_floating_point() or output.is_complex()):
        return False
    values = torch.view_as_real(output) if output.is_complex() else output
    finite = values[values.isfinite()]
    return finite.numel() == 1 or bool((finite != finite[:1]).any())


def of_layers(
    slim: Maker, masked: Maker, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What layers give of which the outputs have the same shape in both models: they keep all channels."""
    shapes = _noted(masked(), args, kwargs, lambda call, output: output.shape)
    one = _noted(slim(), args, kwargs, partial(_copy_of_shape, shapes))
    like = {call: output.shape for call, output in one.items()}
    other = _noted(masked(), args, kwargs, partial(_copy_of_shape, like))
    both = [call for call in one if call in other]
    return [one[call] for call in both], [other[call] for call in both]


def _copy_of_shape(shapes: Mapping[Call, torch.Size], call: Call, output: torch.Tensor) -> torch.Tensor | None:
    # Activations that follow may work in place.
    return output.clone() if shapes.get(call) == output.shape else None


def _noted(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], note: Callable[[Call, torch.Tensor], T | None]
) -> dict[Call, T]:
    """What ``note`` says to every tensor that a module with parameters of its own returns, unless that is None."""
    found: dict[Call, T] = {}
    counts: Counter[str] = Counter()

    def look(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        for tensor in output_tensors(output):
            call = name, counts[name]
            counts[name] += 1
            noted = note(call, tensor)
            if noted is not None:
                found[call] = noted

    for name, module in model.named_modules():
        if module._parameters:
            module.register_forward_hook(partial(look, name))
    run_once(model, args, kwargs)
    return found
