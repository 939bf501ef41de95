"""Slim models on disk: a safetensors file with a readable header, and the way back into a fresh original model."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import nn

from channelwise.errors import InvalidArgumentError, ResultsFileError, UnsupportedModelError
from channelwise.inputs.check import describe
from channelwise.io.atomic import write
from channelwise.io.record import Record, first_problem
from channelwise.structure import Structure
from channelwise.surgery.attributes import fixer_of, followed_numbers
from channelwise.surgery.counts import counts_from_shapes
from channelwise.surgery.install import check_sizes, install
from channelwise.surgery.slicing import NUMBERS
from channelwise.tensors import named_tensors
from channelwise.tracing.code.other_ways import readers

log = logging.getLogger(__name__)

VERSION = 1
_HEADER = "channelwise"


class Header(Record):
    """What the file says about the model besides its tensors.

    ``modules``: name -> class; ``shapes``: tensor name -> shape, of parameters and buffers, persistent or not;
    ``aliases``: further names of a shared tensor -> the name it is stored under; ``attributes``: module ->
    attribute -> value; ``complex``: tensors stored as pairs of real numbers; ``digest``: of all of these.
    """

    format: str = "channelwise slim model"
    version: int = VERSION
    model: str
    modules: dict[str, str]
    shapes: dict[str, list[int]]
    aliases: dict[str, str]
    attributes: dict[str, dict[str, Any]]
    complex: list[str]
    digest: str


def save(slim: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a slim model to ``path``, atomically; `load` puts it into a fresh original model.

    Raises:
        ResultsFileError: the file cannot be written; what was there before is untouched.
        InvalidArgumentError, UnsupportedModelError: ``slim`` is no module, or a scripted one.
    """
    slim = _unwrapped(slim)
    path = _path(path)
    stored, aliases = _stored_tensors(slim)
    _mention_extra_state(slim)
    shapes = {name: list(tensor.shape) for name, tensor in stored.items()}
    header = Header(
        model=type(slim).__qualname__,
        modules={name: type(module).__name__ for name, module in slim.named_modules()},
        shapes=shapes,
        aliases=aliases,
        attributes=_attributes(slim),
        complex=[name for name, tensor in stored.items() if tensor.is_complex()],
        digest="",
    )
    header = header.model_copy(update={"digest": _digest(header)})
    # Views of one storage are independent tensors here, hence the clones.
    plain = {
        n: (torch.view_as_real(t) if t.is_complex() else t).detach().contiguous().clone() for n, t in stored.items()
    }
    write(path, to_safetensors(plain, metadata={_HEADER: header.model_dump_json()}))


def load(
    model: nn.Module, source: str | os.PathLike[str] | Mapping[str, Any], *, structure: Structure | None = None
) -> nn.Module:
    """Turn a fresh original model into the slim one, in place.

    Arguments:
        model: an instance of the original, unpruned architecture. It keeps its devices, training flags and
            ``requires_grad``; its tensors get the saved shapes, values and dtypes. Unchanged if anything is wrong.
        source: a file written by `save`, or the ``state_dict`` of a slim model.
        structure: only for a ``state_dict``: the trace of ``model``, which tells the sizes of layers without tensors
            (norms without affine parameters, ``Unflatten``) that shapes alone do not show, and the numbers that only
            other ways through a module than ``forward`` read.

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
    if isinstance(path, (str, os.PathLike)):
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
    header, stored = _read(path)
    present, aliases = _stored_tensors(model)
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
    except InvalidArgumentError as error:
        raise ResultsFileError(f"{path}: {error}") from error
    attributes = {name: values for name, values in header.attributes.items() if name in modules}
    install(model, present, stored, attributes=attributes)


def _load_state(model: nn.Module, state: Mapping[str, Any], structure: Structure | None) -> None:
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    expected = {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    if tensors and all(name.startswith("module.") for name in tensors) and not any(n in expected for n in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    problem = _difference("tensor", dict.fromkeys(tensors, ""), dict.fromkeys(expected, ""))
    if problem:
        raise InvalidArgumentError(f"the state dict is not of a slim {type(model).__name__}: {problem}")
    present = {name: tensor for name, tensor in named_tensors(model).items() if name in tensors}
    check_sizes(tensors, present)
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
    """Nothing tells which numbers in the users' modules have to follow the channels: say where there may be some.

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


def _read(path: Path) -> tuple[Header, dict[str, torch.Tensor]]:
    foreign = (
        f"{path} was not written by channelwise.save; for a state dict in another file pass the loaded dict itself "
        "(torch.load(path, weights_only=True) or safetensors.torch.load_file(path))"
    )
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_HEADER)
            if text is None:
                raise ResultsFileError(foreign)
            header = _parse(path, text)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except FileNotFoundError as error:
        raise ResultsFileError(f"there is no file {path}") from error
    except OSError as error:
        raise ResultsFileError(f"cannot read {path}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise ResultsFileError(f"{path} is damaged or no safetensors file ({error}). {foreign}") from error
    for name in header.complex:
        if name in tensors:
            tensors[name] = torch.view_as_complex(tensors[name])
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    for name in {**shapes, **header.shapes}:
        if shapes.get(name) != header.shapes.get(name):
            raise ResultsFileError(
                f"{path} was edited or damaged: its header says {header.shapes.get(name)} for {name}, "
                f"the tensor has {shapes.get(name)}. Save the model again"
            )
    if _digest(header) != header.digest:
        raise ResultsFileError(f"the header of {path} was edited or damaged: another digest. Save the model again")
    return header, tensors


def _parse(path: Path, text: str) -> Header:
    try:
        version = json.loads(text)["version"]
        if isinstance(version, int) and version > VERSION:
            raise ResultsFileError(
                f"{path} has format version {version}, this channelwise reads up to {VERSION}: update channelwise"
            )
        return Header.model_validate_json(text)
    except ValidationError as error:
        raise ResultsFileError(f"the header of {path} was edited or damaged: {first_problem(error)}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ResultsFileError(f"the header of {path} was edited or damaged: {error}") from error


def _stored_tensors(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    first: dict[int, str] = {}
    aliases = {}
    for name, tensor in named_tensors(model).items():
        if first.setdefault(id(tensor), name) != name:
            aliases[name] = first[id(tensor)]
    return {name: tensor for name, tensor in named_tensors(model).items() if name not in aliases}, aliases


def _attributes(model: nn.Module) -> dict[str, dict[str, Any]]:
    found = {}
    for name, module in model.named_modules():
        known = fixer_of(type(module))
        values = {a: getattr(module, a) for a in known.attributes if hasattr(module, a)} if known else {}
        values |= followed_numbers(module)
        if values:
            found[name] = values
    return found


def _difference(what: str, saved: Mapping[str, str], given: Mapping[str, str]) -> str:
    """The first difference of two name -> kind mappings in words, "" if there is none."""
    for name in [*saved, *given]:
        if saved.get(name) != given.get(name):
            there, here = (f"{d[name] or 'present'}" if name in d else "missing" for d in (saved, given))
            return f"{what} {name or '(the model itself)'!r} is {there} in what is loaded and {here} in the given model"
    return ""


def _mention_extra_state(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            log.warning("The extra state of module %r is not saved: only tensors are.", name)


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


def _digest(header: Header) -> str:
    content = header.model_dump(include={"modules", "shapes", "aliases", "attributes", "complex"})
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
