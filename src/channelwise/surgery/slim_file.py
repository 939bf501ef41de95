"""The file of a slim model: its tensors as safetensors, with a readable header."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping
from numbers import Integral, Real
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
from channelwise.io.reading import check_readable
from channelwise.io.record import Record, first_problem
from channelwise.surgery.attributes import fixer_of, followed_numbers
from channelwise.tensors import named_tensors

log = logging.getLogger(__name__)

VERSION = 1
_HEADER = "channelwise"
_DATA = "channelwise.data"
"""The digest of the tensors; files of versions before it was introduced have none."""


class SlimFileHeader(Record):
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


def write_slim_file(slim: nn.Module, path: Path) -> None:
    """Write the model to ``path``, atomically.

    Raises:
        ResultsFileError: it cannot be written.
        UnsupportedModelError: a tensor has no values or is of a type that such files cannot hold.
        InvalidArgumentError: so is an attribute that a fixer names.
    """
    stored, aliases = stored_tensors(slim)
    _mention_extra_state(slim)
    shapes = {name: list(tensor.shape) for name, tensor in stored.items()}
    header = SlimFileHeader(
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
    _refuse_without_values(stored)
    plain = {
        n: (torch.view_as_real(t) if t.is_complex() else t).detach().cpu().contiguous().clone()
        for n, t in stored.items()
    }
    metadata = {_HEADER: header.model_dump_json(), _DATA: _digest_of_data(plain)}
    try:
        content = to_safetensors(plain, metadata=metadata)
    except (KeyError, ValueError) as error:
        raise _unsupported(plain, error) from error
    write(path, content)


def read_slim_file(path: Path) -> tuple[SlimFileHeader, dict[str, torch.Tensor]]:
    """What `write_slim_file` wrote. Raises ResultsFileError that says what is wrong with the file."""
    foreign = (
        f"{path} was not written by channelwise.save; for a state dict in another file pass the loaded dict itself "
        "(torch.load(path, weights_only=True) or safetensors.torch.load_file(path))"
    )
    check_readable(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if _HEADER not in metadata:
                raise ResultsFileError(foreign)
            header = _parse(path, metadata[_HEADER])
            tensors = {name: _tensor(path, file, name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except OSError as error:
        raise ResultsFileError(f"cannot read {path}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise ResultsFileError(f"{path} is damaged or no safetensors file ({error}). {foreign}") from error
    digest = metadata.get(_DATA)
    if digest is not None and digest != _digest_of_data(tensors):
        raise ResultsFileError(f"the tensors of {path} were edited or damaged: another digest. Save the model again")
    for name in header.complex:
        if name in tensors:
            tensors[name] = _complex(path, name, tensors[name])
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


def _tensor(path: Path, file: Any, name: str) -> torch.Tensor:
    try:
        return file.get_tensor(name)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ResultsFileError(
            f"{path}: this version of PyTorch cannot read the tensor {name} ({error}). Update PyTorch, or, if the file "
            "was edited or damaged, save the model again"
        ) from error


def _complex(path: Path, name: str, pairs: torch.Tensor) -> torch.Tensor:
    try:
        return torch.view_as_complex(pairs)
    except RuntimeError as error:
        raise ResultsFileError(
            f"{path} was edited or damaged: {name} cannot be complex ({error}). Save the model again"
        ) from error


def _parse(path: Path, text: str) -> SlimFileHeader:
    try:
        version = json.loads(text)["version"]
        if isinstance(version, int) and version > VERSION:
            raise ResultsFileError(
                f"{path} has format version {version}, this channelwise reads up to {VERSION}: update channelwise"
            )
        return SlimFileHeader.model_validate_json(text)
    except ValidationError as error:
        raise ResultsFileError(f"the header of {path} was edited or damaged: {first_problem(error)}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ResultsFileError(f"the header of {path} was edited or damaged: {error}") from error


def stored_tensors(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors that a file holds, by their first names, and their further names -> the first."""
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
            found[name] = {attribute: _plain(value, name, attribute) for attribute, value in values.items()}
    return found


def _plain(value: Any, module: str, attribute: str) -> Any:
    """An attribute as JSON has it: sizes may be numpy's whole numbers."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real) and math.isfinite(value):
        return float(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item, module, attribute) for item in value]
    raise InvalidArgumentError(
        f"the attribute {attribute!r} of {module or 'the model'!r} is {describe(value)}; a file holds numbers, texts "
        "and lists of these. Take it out of the attributes of its fixer"
    )


def _mention_extra_state(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            log.warning("The extra state of module %r is not saved: only tensors are.", name)


def _digest(header: SlimFileHeader) -> str:
    content = header.model_dump(include={"modules", "shapes", "aliases", "attributes", "complex"})
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digest_of_data(tensors: Mapping[str, torch.Tensor]) -> str:
    """Of names, types, shapes and values of tensors on the CPU."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _refuse_without_values(tensors: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_meta or tensor.layout is not torch.strided or tensor.is_quantized:
            kind = "on the meta device" if tensor.is_meta else f"a {tensor.layout} tensor of {tensor.dtype}"
            raise UnsupportedModelError(
                f"{name} is {kind}; only dense tensors with values can be saved. Give it values or make it dense first"
            )


def _unsupported(tensors: Mapping[str, torch.Tensor], error: Exception) -> UnsupportedModelError:
    """The error for tensors that safetensors refuses, with the name of the first."""
    for name, tensor in tensors.items():
        try:
            to_safetensors({name: tensor})
        except (KeyError, ValueError):
            return UnsupportedModelError(
                f"{name} is of {tensor.dtype}, which safetensors files cannot hold. Give it another type first"
            )
    return UnsupportedModelError(f"the tensors cannot be saved: {error}")
