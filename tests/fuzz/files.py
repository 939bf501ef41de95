"""The files that this library reads: how each is written, and how it is read."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from optuna.storages import InMemoryStorage
from torch import nn

import channelwise as cw
from channelwise.io.lock import locked
from channelwise.methods import OFAPruner
from channelwise.methods.sensitivity import Measurement, Plan, SensitivityFile, kept_counts
from channelwise.methods.spec_file import read_spec, write_spec
from channelwise.report import Summary
from channelwise.search import open_study, read_searches
from tests.handmade import chain
from tests.methods.small import INPUTS, net
from tests.search.searches import climb, space


@dataclass(frozen=True)
class Kind:
    """``read`` gives something that is compared with ``==``; ``same`` where less than all may be left."""

    name: str
    write: Callable[[Path], None]
    read: Callable[[Path], Any]
    same: Callable[[Any, Any], bool] = lambda whole, found: bool(whole == found)


@cache
def graph() -> cw.ChannelGraph:
    return cw.trace(net(), INPUTS)


def _load(path: Path) -> Any:
    slim = cw.load(net(), path)
    sizes = [m.out_channels for m in slim.modules() if isinstance(m, nn.Conv2d)]
    return sizes, {name: (str(t.dtype), t.tolist()) for name, t in slim.state_dict().items()}


def _write_analysis(path: Path) -> None:
    structure = chain([8, 12])
    file = SensitivityFile(path, "Net", structure)
    file.begin(Plan(excluded=[], weights="0"), anew=True)
    file.append(Measurement(score=1.0, seconds=0.1))
    for group, counts in kept_counts(structure).items():
        for kept, sparsity in counts.items():
            score = math.sin(kept)
            file.append(Measurement(group=group, kept=kept, sparsity=sparsity, score=score, seconds=0.1))


def _read_analysis(path: Path) -> Any:
    found = SensitivityFile(path, "Net", chain([8, 12])).load()
    assert found is not None
    return {(group, kept): score for group, by_count in found.scores.items() for kept, score in by_count.items()} | (
        {} if found.baseline is None else {(None, None): found.baseline}
    )


def _part_of(whole: Any, found: Any) -> bool:
    """Of an analysis that was cut short the rest is measured again."""
    return bool(found.items() <= whole.items())


def _write_spec(path: Path) -> None:
    selection = graph().select(sparsity=0.5)
    write_spec(path, graph().structure, selection, Summary("Net", 2.0, 1.0, 20, 10))


def _write_search(path: Path) -> None:
    with open_study(space(), "Net", storage=path, budget=4) as study:
        climb(study)


def _read_search(path: Path) -> Any:
    (found,) = read_searches(path, space().structure)
    return found.key, found.trials


def _go_on(path: Path) -> Any:
    with open_study(space(), "Net", storage=path, budget=4) as study:
        assert study.ask() is None, "a candidate is evaluated again"
        return study.results.trials


@cache
def supernet() -> tuple[OFAPruner, nn.Module]:
    pruner = OFAPruner(net(), INPUTS, quiet=True)
    return pruner, pruner.ofa_model([0.5, 1], 2, auto_add_excludes=False)


def _subnets(storage: Any, calls: list[int]) -> Any:
    pruner, model = supernet()

    def score(subnet: nn.Module) -> float:
        calls.append(1)
        return float(sum(p.numel() for p in subnet.parameters()))

    return pruner.run_evolutionary_search(
        model, None, (), score, (), "acc", "max", parent_popu_size=3, iteration=1, mutate_size=1, crossover_size=1,
        flops_step=0.01, storage=storage,
    )  # fmt: skip


def _subnets_again(path: Path) -> Any:
    calls: list[int] = []
    found = _subnets(path, calls)
    assert not calls, "a subnet is evaluated again"
    return found


def _write_setting(path: Path) -> None:
    pruner, model = supernet()
    pruner.save_subnet_config(pruner.sample_subnet(model, "min")[1], path)


def _write_pareto(path: Path) -> None:
    supernet()[0].save_subnet_config(_subnets(InMemoryStorage(), []), path)


def _write_lock(path: Path) -> None:
    with locked(path):
        content = Path(f"{path}.lock").read_bytes()
    path.write_bytes(content)


def _lock(path: Path) -> None:
    """What a process has left that ended; the lock itself is the operating system's."""
    path.with_name("held.lock").write_bytes(path.read_bytes())
    with locked(path.with_name("held")):
        pass


KINDS = [
    Kind("slim.safetensors", lambda path: cw.save(graph().slim(graph().select(sparsity=0.5)), path), _load),
    Kind("Net.sens", _write_analysis, _read_analysis, _part_of),
    Kind("Net.spec", _write_spec, lambda path: read_spec(path, graph().structure).groups),
    Kind("Net.search", _write_search, _read_search),
    Kind("continued.search", _write_search, _go_on),
    Kind("Net.ofa", lambda path: _subnets(path, []) and None, _subnets_again),
    Kind("subnets.json", _write_pareto, lambda path: supernet()[0].load_subnet_config(path)),
    Kind("setting.json", _write_setting, lambda path: supernet()[0].load_subnet_config(path)),
    Kind("left", _write_lock, _lock),
]
