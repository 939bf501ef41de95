"""Runs killed at any moment: nothing finished is lost, they go on, and end as if they had not been killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

import channelwise as cw
from channelwise.methods import IterativePruningRunner, OFAPruner, OneStepPruningRunner
from tests.methods.searched import INPUTS, Logged, wide

SECONDS = 0.004
Finished = Mapping[Any, Any]


def ana(folder: Path, log: Path, workers: int | None) -> None:
    runner = IterativePruningRunner(wide(), INPUTS, folder=folder, quiet=True)
    runner.ana(Logged(log, SECONDS), workers=workers)


def search(folder: Path, log: Path, workers: int | None) -> None:
    runner = OneStepPruningRunner(wide(), INPUTS, folder=folder, quiet=True)
    runner.search(eval_fn=Logged(log, SECONDS), num_subnet=40, channel_divisible=1, strategy="random", workers=workers)


def evolution(folder: Path, log: Path, workers: int | None) -> None:
    pruner = OFAPruner(wide(), INPUTS, folder=folder, quiet=True)
    supernet = pruner.ofa_model([0.5, 0.75, 1], channel_divisible=4)
    pruner.run_evolutionary_search(
        supernet, eval_fn=Logged(log, SECONDS), parent_popu_size=8, iteration=4, mutate_size=4, crossover_size=4,
        flops_step=0.05, workers=workers,
    )  # fmt: skip


def analysed(folder: Path) -> Finished:
    lines = (folder / "Wide.sens").read_bytes().split(b"\n")[:-1]
    records = [record for record in map(json.loads, lines) if record.get("kind") == "evaluation"]
    return {(r.get("group"), r.get("kept")): r["score"] for r in records}


def in_database(name: str) -> Callable[[Path], Finished]:
    def read(folder: Path) -> Finished:
        with closing(sqlite3.connect(folder / name)) as connection:
            scored = "SELECT number, value FROM trials JOIN trial_values USING (trial_id) WHERE state = 'COMPLETE'"
            return dict(connection.execute(scored).fetchall())

    return read


RUNS = {
    "ana": (ana, "Wide.sens", analysed),
    "search": (search, "Wide.search", in_database("Wide.search")),
    "run_evolutionary_search": (evolution, "Wide.ofa", in_database("Wide.ofa")),
}
ALL = pytest.mark.parametrize("name", list(RUNS))


@ALL
def test_killed_three_times_it_ends_as_if_it_had_not_been(name: str, tmp_path: Path) -> None:
    _kill_and_go_on(name, tmp_path, kills=3, workers=None)


@pytest.mark.slow
@ALL
def test_killed_thirty_times_it_ends_as_if_it_had_not_been(name: str, tmp_path: Path) -> None:
    _kill_and_go_on(name, tmp_path, kills=30, workers=None)


@pytest.mark.slow
@ALL
def test_killed_thirty_times_with_workers_nothing_finished_is_lost(name: str, tmp_path: Path) -> None:
    _kill_and_go_on(name, tmp_path, kills=30, workers=2)


def _kill_and_go_on(name: str, tmp_path: Path, *, kills: int, workers: int | None) -> None:
    run, file, read = RUNS[name]
    rng = random.Random(kills)
    run(tmp_path / "undisturbed", tmp_path / "its calls", None)
    expected = read(tmp_path / "undisturbed")
    attempt, left = 0, kills
    while left:
        attempt += 1
        folder, log = tmp_path / f"run {attempt}", tmp_path / f"calls {attempt}"
        finished: Finished = {}
        here = 0
        while True:
            killed = _started(run, folder, log, workers, rng if left else None)
            if (folder / file).exists():
                now = read(folder)
                assert finished.items() <= now.items(), "something finished was lost or changed"
                finished = now
            if not killed:
                break
            here, left = here + 1, left - 1
        # Which candidates several workers get depends on who is first; an analysis does not.
        if workers is None or name == "ana":
            assert finished == expected
        assert len(finished) == len(expected)
        assert len(Logged(log).calls()) <= len(expected) + here * (workers or 1)


def _started(run: Any, folder: Path, log: Path, workers: int | None, rng: random.Random | None) -> bool:
    """Start a run in a process of its own; with ``rng`` it is killed after some evaluations and a little while."""
    before = len(Logged(log).calls())
    process = multiprocessing.get_context("fork").Process(target=run, args=(folder, log, workers))
    process.start()
    if rng is not None:
        wanted = before + rng.randrange(8)
        give_up = time.monotonic() + 120
        while len(Logged(log).calls()) < wanted and process.is_alive() and time.monotonic() < give_up:
            time.sleep(0.001)
        time.sleep(rng.random() * (0.03 if wanted > before else 1.0))
        assert process.pid is not None
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
    process.join(300)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def _saving(models: list[torch.nn.Module], path: Path, started: Path) -> None:
    started.touch()
    while True:
        for model in models:
            cw.save(model, path)


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_a_file_that_is_saved_over_and_over_is_whole_whenever_that_is_killed(kills: int, tmp_path: Path) -> None:
    graph = cw.trace(wide(), INPUTS)
    models = [graph.slim(graph.select(macs=share)) for share in (0.4, 0.7)]
    path, rng = tmp_path / "slim.safetensors", random.Random(kills)
    states = [model.state_dict() for model in models]
    cw.save(models[0], path)
    for kill in range(kills):
        started = tmp_path / f"started {kill}"
        process = multiprocessing.get_context("fork").Process(target=_saving, args=(models, path, started))
        process.start()
        while not started.exists():
            time.sleep(0.001)
        time.sleep(rng.random() * 0.1)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        found = cw.load(wide(), path).state_dict()
        assert any(_equal(found, state) for state in states)
    cw.save(models[1], path)
    assert [file.name for file in tmp_path.iterdir() if file.name.endswith(".tmp")] == []
    assert _equal(cw.load(wide(), path).state_dict(), states[1])


def _equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].shape == other[name].shape and torch.equal(one[name], other[name]) for name in one
    )


@ALL
def test_two_runs_in_one_folder_do_not_disturb_each_other(name: str, tmp_path: Path) -> None:
    run, _, read = RUNS[name]
    run(tmp_path / "undisturbed", tmp_path / "its calls", None)
    context = multiprocessing.get_context("fork")
    folder, log = tmp_path / "one", tmp_path / "calls"
    both = [context.Process(target=run, args=(folder, log, None)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    # The second is refused, or comes when all is done.
    assert 0 in {process.exitcode for process in both}
    assert {process.exitcode for process in both} <= {0, 1}
    assert read(folder) == read(tmp_path / "undisturbed")
    assert len(Logged(log).calls()) == len(read(folder))
