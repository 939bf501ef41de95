"""Can this model be traced with these inputs? Wrappers are taken off, the rest is refused with a reason."""

from __future__ import annotations

import copy
import inspect
import logging
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from channelwise.errors import InvalidArgumentError, UnsupportedModelError
from channelwise.inputs.tree import tensors_in

log = logging.getLogger(__name__)

_QUANTISED = tuple(
    f"torch.{package}nn.{kind}quantized" for package in ("ao.", "") for kind in ("", "intrinsic.", "sparse.")
)
_STILL_FLOAT = ("FloatFunctional", "FXFloatFunctional")
"""Of these packages, but they calculate with floating point numbers: a quantiser replaces them later."""
SUPERNET = "_channelwise_supernet"
"""The attribute of a once-for-all supernet: the digest of the search space that it was built with."""
_PREPARED = tuple(f"torch.ao.quantization.{kind}" for kind in ("observer", "fake_quantize"))


def check_model(model: object, inputs: object = (), kwargs: Mapping[str, object] | None = None) -> nn.Module:
    """The model to trace: ``model`` without DataParallel, DistributedDataParallel and ``torch.compile`` around it.

    Args:
        model: What the user gave. Never modified.
        inputs: One tensor, or a tuple, list or dict that holds tensors (and anything else) of a real batch.
        kwargs: Keyword arguments of the model's forward.

    Raises:
        InvalidArgumentError: ``model`` is no module, or the inputs are no tensors, or on another device or of another
            floating type than the model.
        UnsupportedModelError: scripted, quantised, lazy or sharded models.
    """
    unwrapped = unwrap(model)
    for name, module in unwrapped.named_modules():
        _check_module(name, module)
    for name, tensor in [*unwrapped.named_parameters(), *unwrapped.named_buffers()]:
        _check_tensor(unwrapped, name, tensor)
    tensors = check_inputs(inputs, kwargs)
    _check_match(unwrapped, tensors)
    _mention_unbatched(unwrapped, tensors)
    return unwrapped


def unwrap(model: object) -> nn.Module:
    """Take wrappers off that only change how a model runs, and log each."""
    while True:
        if not isinstance(model, nn.Module):
            raise InvalidArgumentError(f"model must be a torch.nn.Module, not {describe(model)}.{_instead(model)}")
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            log.info("Took %s off the model; wrap the pruned model again.", type(model).__name__)
            model = model.module
        elif type(model).__name__ == "OptimizedModule" and "_orig_mod" in model._modules:
            log.info("Took torch.compile off the model; compile the pruned model again.")
            model = model._modules["_orig_mod"]
        elif getattr(model, "_compiled_call_impl", None) is not None:
            log.info("Use the model without its compiled call; compile the pruned model again.")
            # A shallow copy shares all modules and parameters but leaves the compiled call behind.
            model = copy.copy(model)
        elif _cannot_run(model):
            raise InvalidArgumentError(f"a {type(model).__name__} has no forward: it cannot run.{_instead(model)}")
        else:
            return model


def _cannot_run(model: nn.Module) -> bool:
    """Whether it has no forward. One with a ``__call__`` of its own may do, but not the train() of ultralytics.YOLO."""
    kind = type(model)
    # Not by getattr: scripted classes make their forward when it is looked up.
    if inspect.getattr_static(kind, "forward") is not nn.Module.forward or "forward" in vars(model):
        return False
    return kind.__call__ is nn.Module.__call__ or kind.train is not nn.Module.train


def _instead(model: object) -> str:
    """What to give where ``model`` is none, "" if nothing is known."""
    if isinstance(model, type) and issubclass(model, nn.Module):
        return f" Give an instance: {model.__name__}(...)."
    if isinstance(model, Mapping):
        return " A state dict holds no code: build the model and call load_state_dict."
    if isinstance(model, (str, os.PathLike)):
        return " Load the file first: build the model and call load_state_dict(torch.load(path)), for example."
    inside = dict(model.named_children()) if isinstance(model, nn.Module) else getattr(model, "__dict__", {})
    for name, value in inside.items():
        if isinstance(value, nn.Module):
            place = f".{name}" if name.isidentifier() else f"[{name}]"
            return f" It holds a {type(value).__name__}: give its {place}."
    return ""


def check_inputs(inputs: object, kwargs: Mapping[str, object] | None = None) -> list[torch.Tensor]:
    """All tensors in ``inputs`` and ``kwargs``; there must be at least one."""
    if isinstance(inputs, nn.Module):
        raise InvalidArgumentError("inputs is a module; the order is (model, inputs).")
    if not isinstance(inputs, (torch.Tensor, tuple, list, Mapping)):
        raise InvalidArgumentError(
            f"inputs must be a tensor, or a tuple, list or dict of tensors like a real batch, not {describe(inputs)}."
            + _as_inputs(inputs)
        )
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise InvalidArgumentError(f"kwargs must be a dict of the model's keyword arguments, not {describe(kwargs)}.")
    tensors = tensors_in([inputs, kwargs])
    if not tensors:
        hint = ""
        if isinstance(inputs, (tuple, list)) and inputs and all(isinstance(n, int) for n in inputs):
            hint = f" Did you mean torch.randn({', '.join(map(str, inputs))})?"
        raise InvalidArgumentError(f"inputs holds no tensor: {describe(inputs)}.{hint}")
    check_values("inputs", tensors)
    if tensors[0].dim() and tensors[0].shape[0] == 0:
        raise InvalidArgumentError(
            f"the batch is empty: the first tensor has shape {tuple(tensors[0].shape)}. Give at least one sample."
        )
    return tensors


def check_values(what: str, tensors: Iterable[torch.Tensor]) -> None:
    """Raise InvalidArgumentError if a tensor of ``what`` has no values, or no shape."""
    for tensor in tensors:
        if tensor.is_meta:
            raise InvalidArgumentError(
                f"{what} hold a tensor on the meta device, which has a shape and no values. Give one with values, of a "
                f"real batch or torch.randn({', '.join(map(str, tensor.shape))})."
            )
        if tensor.is_nested:
            raise InvalidArgumentError(f"{what} hold a nested tensor. Give a dense one: tensor.to_padded_tensor(0.0).")


def _as_inputs(value: object) -> str:
    """How to make inputs of something else, "" if that is not known."""
    if isinstance(value, np.ndarray):
        return " Use torch.from_numpy(inputs)."
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        return " Give one batch without labels: images, labels = next(iter(loader))."
    return ""


def _check_module(name: str, module: nn.Module) -> None:
    where = f"module {name!r}" if name else "the model"
    if isinstance(module, torch.jit.ScriptModule):
        raise UnsupportedModelError(
            f"{where} is a {type(module).__name__}: scripted and traced modules cannot be taken apart. Prune the "
            "original nn.Module and script the result."
        )
    if type(module).__module__.startswith(_QUANTISED) and type(module).__name__ not in _STILL_FLOAT:
        raise UnsupportedModelError(
            f"{where} is quantised ({type(module).__module__}.{type(module).__name__}). Prune the floating-point model "
            "and quantise the result."
        )
    if SUPERNET in vars(module):
        raise UnsupportedModelError(
            f"{where} is a supernet already. Give the model it was made from, or a subnet from get_static_subnet()."
        )
    if type(module).__module__.startswith(_PREPARED):
        raise UnsupportedModelError(
            f"{where} is a {type(module).__name__}: the model is prepared for quantisation, its numbers of channels "
            "are fixed. Prune the model before prepare() or prepare_qat(), and prepare the result."
        )
    if name and (type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None):
        raise UnsupportedModelError(f"{where} is compiled. Prune the model before torch.compile, compile the result.")
    if type(module).__name__ == "FullyShardedDataParallel":
        raise UnsupportedModelError(f"{where} is sharded (FSDP). Prune the model before sharding it.")


def _check_tensor(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    if is_lazy(tensor):
        raise UnsupportedModelError(
            f"{name} has no shape yet ({type(model).__name__} has lazy modules). Run a forward pass first: "
            "model(inputs)."
        )
    if tensor.is_quantized:
        raise UnsupportedModelError(f"{name} is quantised. Prune the floating-point model and quantise the result.")
    if is_traceable_wrapper_subclass(tensor):
        raise UnsupportedModelError(
            f"{name} is a {type(tensor).__name__}, a tensor that holds others ({type(tensor).__module__}), as those of "
            "quantised and of sharded models are. Prune the plain model, and quantise or shard the result."
        )
    if tensor.is_meta:
        raise UnsupportedModelError(f"{name} is on the meta device and has no values. Materialise the model first.")


def _check_match(model: nn.Module, tensors: list[torch.Tensor]) -> None:
    """Refuse a device or type mismatch, where the model has one device and one type and so a mismatch must fail."""
    parameters = [(n, p) for n, p in model.named_parameters() if p.is_floating_point() or p.is_complex()]
    floating = next((t for t in tensors if t.is_floating_point() or t.is_complex()), None)
    if not parameters:
        return
    name, first = parameters[0]
    for tensor in tensors:
        if tensor.dim() and tensor.device != first.device and len({p.device for _, p in parameters}) == 1:
            raise InvalidArgumentError(
                f"inputs are on {tensor.device} and the model is on {first.device} ({name}). Move one of them: "
                f"inputs.to({str(first.device)!r})."
            )
    if floating is None or torch.is_autocast_enabled(floating.device.type):
        return
    if floating.dtype != first.dtype and len({p.dtype for _, p in parameters}) == 1:
        raise InvalidArgumentError(
            f"inputs are {floating.dtype} and the model is {first.dtype} ({name}). Give inputs of the model's type: "
            f"inputs.to({first.dtype})."
        )


def _mention_unbatched(model: nn.Module, tensors: list[torch.Tensor]) -> None:
    """Convolutions take an image (C, H, W), too; its channels would be counted as samples."""
    first = next((m for m in model.modules() if next(m.parameters(recurse=False), None) is not None), None)
    if not isinstance(first, _ConvNd) or len(tensors) > 1:
        return
    shape = tuple(tensors[0].shape)
    if len(shape) == len(first.kernel_size) + 1 and shape[0] == first.in_channels > 1:
        log.warning(
            "inputs of shape %s look like one sample without a batch axis: their first axis is taken for %d samples, "
            "and MACs are those of one. Give inputs.unsqueeze(0).", shape, shape[0]
        )  # fmt: skip


def check_flag(name: str, value: object) -> bool:
    """``value`` as a truth value; a text such as "no" would be taken for yes."""
    if not isinstance(value, (bool, np.bool_)) and not (isinstance(value, int) and value in (0, 1)):
        raise InvalidArgumentError(f"{name}={value!r}: must be True or False.")
    return bool(value)


def describe(value: object) -> str:
    """What the user gave, in a few words for an error message."""
    text = repr(value) if not isinstance(value, (torch.Tensor, np.ndarray, Mapping)) else ""
    kind = value.__name__ if isinstance(value, type) else type(value).__name__
    if isinstance(value, type):
        return f"the class {kind}"
    return f"{kind} {text}" if text and len(text) <= 60 else f"a {kind}"


def model_device(model: nn.Module) -> torch.device:
    """The device of the model's first parameter or buffer; the CPU for a model without any."""
    tensor: Any = next(model.parameters(), None)
    if tensor is None:
        tensor = next(model.buffers(), None)
    return torch.device("cpu") if tensor is None else tensor.device
