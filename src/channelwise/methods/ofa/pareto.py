"""What a search among subnets returns: the best of every bucket of MACs, as plain data and as a JSON file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import Field, RootModel

from channelwise.errors import InvalidArgumentError, ResultsFileError
from channelwise.inputs.check import describe
from channelwise.io.record import Record, checksum, read_json, write_json
from channelwise.methods.ofa.choices import Setting
from channelwise.methods.ofa.evolution import FrontEvolution
from channelwise.methods.ofa.space import SearchSpace
from channelwise.methods.ofa.window import WindowSpace, bucket_name, buckets
from channelwise.search import SearchResults

Content = TypeVar("Content")
Pareto = dict[str, dict[str, Any]]
"""By MACs in millions, rounded ("230"): net_id, mode, the metric, flops, macs and params (millions), subnet_setting."""


class ParetoFile(Record, title="subnet config"):
    """`Pareto` as JSON."""

    format: Literal["channelwise-subnets"] = "channelwise-subnets"
    version: Literal[1] = 1
    subnets: dict[str, dict[str, Any]] = Field(min_length=1)
    check: str | None = None


class SettingFile(Record, title="subnet setting"):
    """One setting as JSON."""

    format: Literal["channelwise-setting"] = "channelwise-setting"
    version: Literal[1] = 1
    setting: Setting = Field(min_length=1)
    check: str | None = None


class _Bare(RootModel[Any], title="subnet config"):
    """Any JSON."""


def pareto(results: SearchResults, window: WindowSpace, metric: str, step: float, strategy: Any) -> Pareto:
    """The best subnet of every bucket of ``step`` million MACs, from small to large."""
    found: Pareto = {}
    for trial in reversed(results.ranked()):
        values = window.values(trial.counts)
        macs = float(window.space.macs(values))
        found[bucket_name(int(buckets(macs, step)), step)] = {
            "net_id": _net_id(trial.number, strategy),
            "mode": "evaluate",
            metric: trial.score,
            "flops": macs / 1e6,
            "macs": macs / 1e6,
            "params": float(window.space.params(values)) / 1e6,
            "subnet_setting": window.space.setting(values),
        }
    return dict(sorted(found.items(), key=lambda item: float(item[0])))


def _net_id(number: int, strategy: Any) -> str:
    known = isinstance(strategy, FrontEvolution)
    generation, mode, place = strategy.place(number) if known else (0, "random", number)
    return f"net_evo_{generation}_{mode}_{place}"


def save_pareto(found: Any, path: str | os.PathLike[str]) -> None:
    """Write the result of a search, or one setting; whole or not at all.

    Raises:
        InvalidArgumentError: ``found`` is neither.
        ResultsFileError: it cannot be written.
    """
    found = _plain(found)
    if _is_setting(found):
        write_json(path, SettingFile(setting=found, check=checksum(found)))
        return
    if not isinstance(found, Mapping) or not all(_is_subnet(subnet) for subnet in found.values()) or not found:
        raise InvalidArgumentError(
            "save_subnet_config takes what run_evolutionary_search returned (subnets by MACs, each with its "
            f"subnet_setting) or the setting of one subnet, not {describe(found)}."
        )
    subnets = {str(name): dict(subnet) for name, subnet in found.items()}
    write_json(path, ParetoFile(subnets=subnets, check=checksum(subnets)))


def load_pareto(path: str | os.PathLike[str], space: SearchSpace | None = None) -> Pareto | Setting:
    """Read what `save_pareto` wrote, or the same as bare JSON; with ``space`` only settings of this supernet.

    Raises:
        ResultsFileError: no such file, damaged, of another version, or of another supernet.
    """
    content = _content(path)
    if isinstance(content, list):
        _check_setting(path, content, space)
        return content
    subnets = dict(content)
    for name, subnet in subnets.items():
        if not _is_subnet(subnet):
            raise ResultsFileError(f"{path} is damaged: the subnet {name!r} has no subnet_setting.")
        _check_setting(path, subnet["subnet_setting"], space)
    return subnets


def _content(path: str | os.PathLike[str]) -> Pareto | Setting:
    """What the file holds, as a record of this library or bare, as other programs write it."""
    plain = read_json(path, _Bare).root
    written = plain.get("format") if isinstance(plain, Mapping) else None
    if written == "channelwise-setting":
        setting = read_json(path, SettingFile)
        return _checked(path, setting.setting, setting.check)
    if written is not None:
        subnets = read_json(path, ParetoFile)
        return _checked(path, subnets.subnets, subnets.check)
    if not _is_setting(plain) and not (isinstance(plain, Mapping) and plain):
        raise ResultsFileError(f"{path} holds neither subnets by MACs nor a setting.")
    return plain


def _checked(path: str | os.PathLike[str], content: Content, check: str | None) -> Content:
    if check is not None and check != checksum(content):
        raise ResultsFileError(
            f"{path} was edited or damaged: another checksum. Restore it or save it anew; if it was edited on purpose, "
            "remove its 'check'."
        )
    return content


def _check_setting(path: str | os.PathLike[str], setting: Setting, space: SearchSpace | None) -> None:
    try:
        if space is not None:
            space.values(setting)
    except InvalidArgumentError as error:
        raise ResultsFileError(f"{path} does not fit this supernet: {error}") from error


def _plain(found: Any) -> Any:
    """The same as JSON has it, numbers of NumPy included."""
    try:
        return json.loads(json.dumps(found, default=lambda value: value.item()))
    except (TypeError, ValueError, AttributeError) as error:
        raise InvalidArgumentError(f"save_subnet_config takes what JSON can hold: {error}.") from error


def _is_subnet(subnet: Any) -> bool:
    return isinstance(subnet, Mapping) and isinstance(subnet.get("subnet_setting"), list) and subnet["subnet_setting"]


def _is_setting(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, Mapping) for entry in value)
