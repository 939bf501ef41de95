"""Why a model raised on its example inputs, as far as the way it was called or a device explains it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from channelwise.errors import ChannelwiseError, TraceError, with_hint
from channelwise.inputs.devices import is_missing_device
from channelwise.inputs.tree import tensors_in


@contextmanager
def running(model: nn.Module, inputs: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[None]:
    """What the model raises in the block becomes a TraceError that says where, on which inputs, and what to do.

    Arguments:
        inputs: what the user gave; ``args`` and ``kwargs`` are what was made of it.
    """
    try:
        yield
    except ChannelwiseError:
        raise
    except Exception as error:
        module = getattr(error, "_channelwise_module", "")
        where = f" in {module}" if module else ""
        hint = call_hint(model, inputs, args, kwargs, error)
        raise TraceError(
            f"{type(model).__name__} raised {type(error).__name__}{where} when run on the example inputs "
            f"({shapes(tensors_in([list(args), kwargs]))}): {with_hint(error, hint)}"
        ) from error


def shapes(tensors: Sequence[torch.Tensor]) -> str:
    """The shapes, types and devices of the first tensors."""
    return ", ".join(f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')} on {t.device}" for t in tensors[:4])


def call_hint(
    model: nn.Module, inputs: Any, args: Sequence[Any], kwargs: Mapping[str, Any], error: BaseException
) -> str:
    """A sentence with the way out, "" if nothing is known."""
    if is_missing_device(error):
        return (
            "The code of the model asks for a device that is not there. Let it use that of its input: x.device, not "
            ".cuda()."
        )
    if "does not require grad and does not have a grad_fn" in str(error):
        return (
            "Models are traced without gradients. Code of forward that needs them asks for them: "
            "`with torch.enable_grad():`, on inputs with requires_grad."
        )
    if "no rule registered for H" in str(error):  # HigherOrderOperator, or HOP
        return (
            "What this operator of torch runs inside cannot be followed. Trace the model with ordinary operations "
            "in its place: F.scaled_dot_product_attention for flex_attention, `if` and loops for cond and while_loop."
        )
    if misfit(model, args, kwargs) is None:
        return ""
    if isinstance(inputs, Mapping):
        return (
            f"A dict gives keyword arguments, here {', '.join(map(str, inputs))}. If the model takes the dict itself, "
            "give (inputs,)."
        )
    if isinstance(inputs, (tuple, list)):
        kind = type(inputs).__name__
        given = f"A {kind} gives positional arguments, here {len(args)}."
        return f"{given} If the model takes the {kind} itself, give (inputs,)."
    return "Give all that its forward needs: a tuple of positional arguments, and the others in a dict."


def misfit(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> TypeError | None:
    """What is wrong with these arguments for ``model.forward``; None if it can take them."""
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):
        # Compiled code may have no signature; the call itself then decides.
        return None
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        return error
    return None
