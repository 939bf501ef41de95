"""Slim models saved, and loaded into fresh original ones, from their files or from state dicts."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from channelwise.errors import InvalidArgumentError, ResultsFileError, UnsupportedModelError
from channelwise.inputs.check import describe
from channelwise.io.paths import is_path
from channelwise.structure import Structure
from channelwise.surgery.counts import counts_from_shapes
from channelwise.surgery.install import check_attributes, check_layers, check_sizes, install
from channelwise.surgery.slicing import NUMBERS
from channelwise.surgery.slim_file import read_slim_file, stored_tensors, write_slim_file
from channelwise.tensors import named_tensors
from channelwise.tracing.code.other_ways import readers

log = logging.getLogger(__name__)


def save(slim: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a slim model to ``path``, atomically; `load` puts it into a fresh original model.

    Raises:
        ResultsFileError: the file cannot be written; what was there before is untouched.
        InvalidArgumentError, UnsupportedModelError: ``slim`` is no module, or a scripted one.
    """
    write_slim_file(_unwrapped(slim), _path(path))


def load(
    model: nn.Module, source: str | os.PathLike[str] | Mapping[str, Any], *, structure: Structure | None = None
) -> nn.Module:
    """Turn a fresh original model into the slim one, in place.

    Arguments:
        model: an instance of the original, unpruned architecture. It keeps its devices, training flags and
            ``requires_grad``; its tensors get the saved shapes, values and dtypes. Unchanged if anything is wrong.
        source: a file written by `save`, or the ``state_dict`` of a slim model.
        structure: only for a ``state_dict``: the trace of ``model``, which knows the sizes of layers without tensors
            (norms without affine parameters, ``Unflatten``) that shapes alone do not show, and the numbers that only
            other ways through a module than ``forward`` read. With it the shapes of all layers are checked against each
            other, without it only those within one layer.

    Returns:
        ``model``.

    Raises:
        ResultsFileError: the file is missing, damaged, of a newer format or of another architecture.
        InvalidArgumentError: the ``state_dict`` is not of a slim version of ``model``.
    """
    target = _unwrapped(model)
    if isinstance(source, Mapping):
        _load_state(target, source, _structure(target, structure))
    else:
        _load_file(target, _path(source))
    return model


def _path(path: object) -> Path:
    if is_path(path):
        return Path(path)
    hint = "; the order is (model, file or state dict)" if isinstance(path, nn.Module) else ""
    raise InvalidArgumentError(f"the file must be given as a path, not {describe(path)}{hint}")


def _structure(model: nn.Module, structure: Any) -> Structure | None:
    """The structure itself or that of a graph, if it is of ``model``."""
    structure = getattr(structure, "structure", structure)
    if structure is None:
        return None
    if not isinstance(structure, Structure):
        raise InvalidArgumentError(f"structure must be a trace of the model, not {describe(structure)}")
    present = named_tensors(model)
    for name, info in structure.tensors.items():
        if name not in present or tuple(present[name].shape) != info.shape:
            there = f"the shape {tuple(present[name].shape)}" if name in present else "none"
            raise InvalidArgumentError(
                f"structure is the trace of another model: it has {name} of shape {info.shape}, "
                f"the {type(model).__name__} has {there}"
            )
    return structure


def _load_file(model: nn.Module, path: Path) -> None:
    header, stored = read_slim_file(path)
    present, aliases = stored_tensors(model)
    modules = {name: type(module).__name__ for name, module in model.named_modules()}
    problem = _difference("module", header.modules, modules) or _difference("shared tensor", header.aliases, aliases)
    problem = problem or _difference("tensor", dict.fromkeys(header.shapes, ""), dict.fromkeys(present, ""))
    if problem:
        raise ResultsFileError(
            f"{path} holds a slim {header.model}, which is not of the architecture of the given model: {problem}. "
            "Give a fresh instance of the original model"
        )
    try:
        # Buffers that are no part of state dicts may be computed while the model runs, from its input's size.
        computed = {f"{p}.{b}".lstrip(".") for p, m in model.named_modules() for b in m._non_persistent_buffers_set}
        check_sizes(stored, {name: tensor for name, tensor in present.items() if name not in computed})
        attributes = {name: values for name, values in header.attributes.items() if name in modules}
        check_attributes(model, attributes)
    except InvalidArgumentError as error:
        raise ResultsFileError(f"{path}: {error}") from error
    install(model, present, stored, attributes=attributes)


def _load_state(model: nn.Module, state: Mapping[str, Any], structure: Structure | None) -> None:
    expected = {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    for name, value in state.items():
        _check_entry(name, value, expected)
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    if tensors and all(name.startswith("module.") for name in tensors) and not any(n in expected for n in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    problem = _difference("tensor", dict.fromkeys(tensors, ""), dict.fromkeys(expected, ""))
    if problem:
        raise InvalidArgumentError(f"the state dict is not of a slim {type(model).__name__}: {problem}")
    present = {name: tensor for name, tensor in named_tensors(model).items() if name in tensors}
    check_sizes(tensors, present)
    check_layers(model, tensors)
    counts = None
    if structure is not None:
        known = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        counts = counts_from_shapes(structure, known)
        for name, tensor in named_tensors(model).items():
            sizes = structure.tensor_sizes.get(structure.aliases.get(name, name))
            if name not in tensors and sizes and tuple(size(counts) for size in sizes) != tuple(tensor.shape):
                raise InvalidArgumentError(
                    f"the buffer {name} loses channels but is not part of a state dict (it is not persistent); "
                    "use channelwise.save and channelwise.load with a file"
                )
    else:
        _mention_numbers(model, present, tensors, has_metadata=getattr(state, "_metadata", None) is not None)
    install(model, present, tensors, attributes=_numbers_of(state), structure=structure, counts=counts)


def _check_entry(name: Any, value: Any, expected: Mapping[str, torch.Tensor]) -> None:
    """Raise InvalidArgumentError, naming it, for what is no entry of a state dict whose tensors have values."""
    if not isinstance(name, str):
        raise InvalidArgumentError(f"a state dict has names of tensors as its keys, not {describe(name)}")
    if isinstance(value, Mapping) and name not in expected and not name.endswith("_extra_state"):
        raise InvalidArgumentError(
            f"a state dict holds tensors by name, and {name!r} is {describe(value)}; if that is the state dict, give "
            f"source[{name!r}]"
        )
    bare = name if name in expected else name.removeprefix("module.")
    if bare not in expected:
        return
    if not isinstance(value, torch.Tensor):
        raise InvalidArgumentError(
            f"{name} is {describe(value)} in the state dict, not a tensor; torch.as_tensor makes one of an array"
        )
    if value.is_meta and not expected[bare].is_meta:
        raise InvalidArgumentError(f"{name} is on the meta device, without values: load the state dict on a real one")
    if value.layout is not torch.strided:
        raise InvalidArgumentError(f"{name} is a {value.layout} tensor in the state dict: call to_dense() first")


def _numbers_of(state: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """By module, the numbers that follow the channels, as far as the state dict has metadata."""
    metadata = getattr(state, "_metadata", None) or {}
    found = {name: entry[NUMBERS] for name, entry in metadata.items() if isinstance(entry, dict) and NUMBERS in entry}
    if found and all(name.partition(".")[0] == "module" for name in found):
        found = {name.removeprefix("module").removeprefix("."): numbers for name, numbers in found.items()}
    return found


def _mention_numbers(
    model: nn.Module, present: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor], *, has_metadata: bool
) -> None:
    """A state dict does not say which numbers in the users' modules have to follow the channels: log where some may.

    The metadata of a state dict holds those that ``forward`` needs, not those of other ways through a module.
    """
    for path, module in model.named_modules():
        if type(module).__module__.startswith("torch.nn."):
            continue
        inside = [name for name in present if not path or name.startswith(f"{path}.")]
        lost = {
            old
            for name in inside
            for old, new in zip(present[name].shape, tensors[name].shape, strict=True)
            if old != new
        }
        numbers = [name for name, value in vars(module).items() if type(value) is int and value in lost]
        if has_metadata:
            numbers = [name for name in numbers if readers(type(module), name)]
        if numbers:
            log.warning(
                "This state dict %s, so %s of %r stays as it is. If the code "
                "needs it, give structure=channelwise.trace(model, inputs), or use channelwise.save.",
                "holds the numbers that `forward` needs only" if has_metadata
                else "has lost the metadata that torch gives it",
                numbers[0], path or type(model).__name__,
            )  # fmt: skip
            return


def _difference(what: str, saved: Mapping[str, str], given: Mapping[str, str]) -> str:
    """The first difference of two name -> kind mappings in words, "" if they are equal."""
    for name in [*saved, *given]:
        if saved.get(name) != given.get(name):
            there, here = (f"{d[name] or 'present'}" if name in d else "missing" for d in (saved, given))
            return f"{what} {name or '(the model itself)'!r} is {there} in what is loaded and {here} in the given model"
    return ""


def _unwrapped(model: Any) -> nn.Module:
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif type(model).__name__ == "OptimizedModule" and "_orig_mod" in model._modules:
            model = model._modules["_orig_mod"]
        else:
            break
    if not isinstance(model, nn.Module):
        raise InvalidArgumentError(f"the model must be a torch.nn.Module, not {describe(model)}")
    if isinstance(model, torch.jit.ScriptModule):
        raise UnsupportedModelError(f"the model is a {type(model).__name__}: save and load before scripting it")
    return model
