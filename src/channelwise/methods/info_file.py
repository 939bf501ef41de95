"""The info file: the channels of every layer before and after pruning."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from torch import nn

from channelwise.errors import InvalidArgumentError, ResultsFileError
from channelwise.inputs.check import describe
from channelwise.io.record import Record, first_problem, write_json
from channelwise.report import Summary

log = logging.getLogger(__name__)

VERSION = 1
SIZES = (
    "in_channels",
    "out_channels",
    "groups",
    "in_features",
    "out_features",
    "num_features",
    "num_channels",
    "num_parameters",
)


class Change(Record):
    """A size before and after."""

    before: int
    after: int


class LayerInfo(Record):
    """One layer with parameters: its class and its sizes."""

    type: str
    sizes: dict[str, Change]


class Info(Record):
    """The file ``<ModelClass>_ratio_<r>_pruning_info.json``, or where ``pruning_info_path`` says."""

    format: Literal["channelwise-info"] = "channelwise-info"
    version: int = VERSION
    model: str
    macs_before: float
    macs_after: float
    params_before: int
    params_after: int
    layers: dict[str, LayerInfo]


def pruning_info(dense: nn.Module, slim: nn.Module, summary: Summary) -> dict[str, Any]:
    """The sizes of all layers before and after, as plain data."""
    after = dict(slim.named_modules())
    layers = {}
    for name, module in dense.named_modules():
        if name not in after or not any(True for _ in module.parameters(recurse=False)):
            continue
        sizes = {
            key: Change(before=value, after=getattr(after[name], key))
            for key, value in vars(module).items()
            if key in SIZES and isinstance(value, int)
        }
        if sizes:
            layers[name] = LayerInfo(type=type(module).__name__, sizes=sizes)
    return Info(**summary.figures(), layers=layers).model_dump()


def write_info(path: str | os.PathLike[str], info: Mapping[str, Any]) -> None:
    """Write what `pruning_info` made to ``path``.

    Raises:
        InvalidArgumentError: ``info`` is something else.
        ResultsFileError: it cannot be written.
    """
    try:
        record = Info.model_validate(info)
    except ValidationError as error:
        raise InvalidArgumentError(
            f"pruning_info must be model._pruning_info of a pruned model, not {describe(info)}: {first_problem(error)}."
        ) from error
    write_json(path, record)


def write_unasked(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file that the user did not ask for: where that is not possible, the pruned model is no worse."""
    try:
        write(path)
    except ResultsFileError as error:
        log.warning("%s The pruned model is complete without it.", error)
