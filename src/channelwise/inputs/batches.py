"""How a user's loader is read and its batches are given to a model: the one place that knows."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from channelwise.errors import ChannelwiseError, EvaluationError, InvalidArgumentError, with_hint
from channelwise.inputs.calls import misfit, shapes
from channelwise.inputs.check import check_values, describe, model_device
from channelwise.inputs.example import number_of_samples
from channelwise.inputs.tree import mapped, tensors_in

log = logging.getLogger(__name__)

MANY = 200
"""So many batches of a loader that does not say how many it has are said to be many: it may have no end."""

ForwardFn = Callable[[nn.Module, Any], Any]


def check_loader(loader: object, batches: int | None = None, *, repeated: bool = False) -> None:
    """Refuse what cannot be a loader, without reading from it.

    Args:
        loader: Anything that can be iterated and yields batches: a DataLoader, a list.
        batches: How many batches to read; None for all.
        repeated: It is going to be read more than once, which a generator does not survive.

    Raises:
        InvalidArgumentError: what is wrong and what to give instead.
    """
    if isinstance(loader, Tensor):
        raise InvalidArgumentError("loader is a tensor: give batches, such as [images], or a DataLoader.")
    if isinstance(loader, Mapping):
        raise InvalidArgumentError("loader is a dict: give batches, such as [batch], or a DataLoader.")
    if isinstance(loader, Dataset) and not isinstance(loader, IterableDataset):
        raise InvalidArgumentError(
            f"loader is a dataset ({type(loader).__name__}), which yields single samples. Give batches: "
            "DataLoader(dataset, batch_size=64)."
        )
    iterable = isinstance(loader, Iterable) or hasattr(loader, "__getitem__")
    if not iterable or isinstance(loader, (str, bytes, nn.Module, type)):
        raise InvalidArgumentError(f"loader must yield batches, like a DataLoader or a list, not {describe(loader)}.")
    if batches is not None and (not isinstance(batches, Integral) or isinstance(batches, bool) or batches < 1):
        raise InvalidArgumentError(f"batches={batches!r}: must be a whole number from 1, or None for all batches.")
    if repeated and isinstance(loader, Iterator):
        raise InvalidArgumentError(
            f"loader is a {type(loader).__name__}, which can be read only once, and it is needed several times. Give a "
            "DataLoader or a list: list(loader)."
        )


def length_of(loader: Any) -> int:
    """How many batches a loader says that it has; 0 if it does not."""
    try:
        return len(loader)
    except (TypeError, NotImplementedError, AttributeError):  # a stream, or a sampler of one
        return 0


def batches_of(loader: Any, batches: int | None = None) -> Iterator[Any]:
    """The first ``batches`` batches of ``loader``, or all; never reads one more.

    Says so where all are read of a loader that may have no end.

    Raises:
        InvalidArgumentError: at once for what cannot be a loader, and when the loader yields nothing.
    """
    check_loader(loader, batches)
    return _read(loader, batches)


def _read(loader: Any, batches: int | None) -> Iterator[Any]:
    read = 0
    many = max(MANY, length_of(loader))
    for batch in islice(iter(loader), batches):
        read += 1
        if batches is None and read == many + 1:
            log.warning(
                "%d batches of a %s have been read, and it does not say how many it has. If it has no end, say how "
                "many to read: batches=10, for example.", many, type(loader).__name__
            )  # fmt: skip
        check_values("the loader's batches", tensors_in(batch))
        yield batch
    if read:
        return
    why = ""
    if isinstance(loader, Iterator):
        why = f" A {type(loader).__name__} can be read only once: give a DataLoader or a list."
    elif getattr(loader, "drop_last", False):
        why = " drop_last=True leaves out a batch with fewer samples than batch_size."
    raise InvalidArgumentError(f"the loader yields nothing.{why}")


def samples_in(batch: Any) -> int:
    """How many samples a batch of a loader holds, at least 1."""
    return max(number_of_samples([batch], {}), 1)


def forward(model: nn.Module, batch: Any, forward_fn: ForwardFn | None = None) -> Any:
    """The model's output for a batch of a loader.

    Tensors are first moved to the model's device; their types stay. A tensor is the input itself. In a tuple or list
    the first item is the input, the rest are targets. An input that is a tuple or list gives positional arguments, a
    dict, as input or as the batch itself, gives keyword arguments.

    Args:
        forward_fn: Called as ``forward_fn(model, batch)`` instead, for batches of any other form.

    Raises:
        InvalidArgumentError: the batch holds no tensor, or the model's forward does not take what it holds.
        EvaluationError: the model or ``forward_fn`` raised on the batch; the message has its shapes.
    """
    batch = moved(batch, model_device(model))
    if forward_fn is not None:
        check_forward_fn(forward_fn)
        with _told(batch, "forward_fn", "It is called as forward_fn(model, batch)."):
            return forward_fn(model, batch)
    inputs = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not tensors_in(inputs):
        raise InvalidArgumentError(
            f"a batch of the loader has no tensor as its input: it is {describe(batch)}"
            + (f", of which the first item is {describe(inputs)}" if inputs is not batch else "")
            + ". Yield tensors, (inputs, targets) or a dict, or say how to use it: "
            "forward_fn=lambda model, batch: model(...)."
        )
    if isinstance(inputs, Mapping):
        _check_call(model, (), inputs)
        with _told(inputs, type(model).__name__, _LIKE_INPUTS):
            return model(**inputs)
    arguments = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    _check_call(model, arguments, {})
    with _told(arguments, type(model).__name__, _LIKE_INPUTS):
        return model(*arguments)


_LIKE_INPUTS = "Batches must have the shape and the type of the inputs that were traced."
_OFTEN = (RuntimeError, TypeError, ValueError, LookupError, AttributeError)
"""What PyTorch and users' code raise over a batch that does not fit. Other errors are not about the batch."""


@contextmanager
def _told(batch: Any, what: str, hint: str) -> Iterator[None]:
    """Errors over a batch of the loader say so, and what would be right."""
    try:
        yield
    except (ChannelwiseError, torch.OutOfMemoryError):
        raise
    except _OFTEN as error:
        raise EvaluationError(
            f"{what} raised {type(error).__name__} on a batch of the loader ({shapes(tensors_in(batch))}): "
            f"{with_hint(error, hint)}"
        ) from error


def check_forward_fn(forward_fn: object) -> None:
    """Raise InvalidArgumentError unless it is a function."""
    if not callable(forward_fn):
        raise InvalidArgumentError(
            f"forward_fn must be a function called as forward_fn(model, batch), not {describe(forward_fn)}."
        )


def _check_call(model: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
    error = misfit(model, arguments, keywords)
    if error is not None:
        given = f"the keys {', '.join(map(str, keywords))}" if keywords else f"{len(arguments)} input(s)"
        names = ", ".join(inspect.signature(model.forward).parameters)
        raise InvalidArgumentError(
            f"{type(model).__name__}.forward({names}) does not take what a batch of the loader gives, {given} "
            f"({error}). Say how to call it: forward_fn=lambda model, batch: model(...)."
        ) from error


def moved(value: Any, device: torch.device) -> Any:
    """``value`` with all tensors in its tuples, lists and dicts on ``device``; what is there already is not copied."""
    if all(tensor.device == device for tensor in tensors_in(value)):
        return value
    return mapped(value, lambda tensor: tensor.to(device, non_blocking=device.type == "cuda"))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode for the block; afterwards each has its own flag again.

    Sets the flags themselves, since ``train`` and ``eval`` of a user's class may do more or less than that.
    """
    flags = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in flags:
            module.training = False
        yield
    finally:
        for module, training in flags:
            module.training = training
