"""The info file: the channels of every layer before and after pruning."""

from __future__ import annotations

import os
from typing import Literal

from torch import nn

from channelwise.io.record import Record, write_json
from channelwise.report import Summary

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
    """The file that ``pruning_info_path`` asks for."""

    format: Literal["channelwise-info"] = "channelwise-info"
    version: int = VERSION
    model: str
    macs_before: float
    macs_after: float
    params_before: int
    params_after: int
    layers: dict[str, LayerInfo]


def write_info(path: str | os.PathLike[str], dense: nn.Module, slim: nn.Module, summary: Summary) -> None:
    """Write the sizes of all layers before and after to ``path``."""
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
    write_json(path, Info(**summary.figures(), layers=layers))
