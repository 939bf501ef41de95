"""What a search among subnets returns: the best of every bucket of MACs, as plain data and as a JSON file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from channelwise.errors import InvalidArgumentError, ResultsFileError
from channelwise.io.record import Record, read_json, write_json
from channelwise.methods.ofa.choices import Setting
from channelwise.methods.ofa.evolution import FrontEvolution
from channelwise.methods.ofa.space import SearchSpace
from channelwise.methods.ofa.window import WindowSpace, bucket_name, buckets
from channelwise.search import SearchResults

Pareto = dict[str, dict[str, Any]]
"""By MACs in millions, rounded ("230"): net_id, mode, the metric, flops, macs and params (millions), subnet_setting."""


class ParetoFile(Record):
    """`Pareto` as JSON."""

    format: Literal["channelwise-subnets"] = "channelwise-subnets"
    version: Literal[1] = 1
    subnets: dict[str, dict[str, Any]] = Field(min_length=1)


def pareto(results: SearchResults, window: WindowSpace, metric: str, step: float, strategy: Any) -> Pareto:
    """The best subnet of every bucket of ``step`` million MACs, from small to large."""
    found: Pareto = {}
    for trial in reversed(results.ranked()):
        values = window.values(trial.counts)
        macs = float(window.space.macs(values))
        found[bucket_name(int(buckets(macs, step)), step)] = {
            "net_id": f"net_{trial.number}",
            "mode": strategy.mode(trial.number) if isinstance(strategy, FrontEvolution) else "random",
            metric: trial.score,
            "flops": macs / 1e6,
            "macs": macs / 1e6,
            "params": float(window.space.params(values)) / 1e6,
            "subnet_setting": window.space.setting(values),
        }
    return dict(sorted(found.items(), key=lambda item: float(item[0])))


def save_pareto(found: Any, path: str | os.PathLike[str]) -> None:
    """Write the result of a search; whole or not at all.

    Raises:
        InvalidArgumentError: ``found`` is not the result of a search.
        ResultsFileError: it cannot be written.
    """
    if not isinstance(found, Mapping) or not all(_is_subnet(subnet) for subnet in found.values()) or not found:
        raise InvalidArgumentError(
            "save_subnet_config takes what run_evolutionary_search returned: subnets by MACs, each with its "
            "subnet_setting."
        )
    write_json(path, ParetoFile(subnets={str(name): dict(subnet) for name, subnet in found.items()}))


def load_pareto(path: str | os.PathLike[str], space: SearchSpace | None = None) -> Pareto:
    """Read what `save_pareto` wrote; with ``space`` only settings of this supernet are accepted.

    Raises:
        ResultsFileError: no such file, damaged, of another version, or of another supernet.
    """
    subnets = dict(read_json(path, ParetoFile).subnets)
    for name, subnet in subnets.items():
        if not _is_subnet(subnet):
            raise ResultsFileError(f"{path} is damaged: the subnet {name!r} has no subnet_setting.")
        if space is not None:
            try:
                space.values(subnet["subnet_setting"])
            except InvalidArgumentError as error:
                raise ResultsFileError(f"{path} does not fit this supernet: {error}") from error
    return subnets


def _is_subnet(subnet: Any) -> bool:
    setting: Setting | Any = subnet.get("subnet_setting") if isinstance(subnet, Mapping) else None
    return isinstance(setting, list) and bool(setting)
