"""A driver killed at any moment loses nothing finished and repeats nothing."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from channelwise.search import open_study, read_searches
from tests.search.searches import climb, height, space


def drive(path: Path, log: Path, budget: int) -> None:
    """A driver with one worker; every finished evaluation is a line in a log before its score is told."""
    with open_study(space(), "Net", storage=path, budget=budget, seed=5) as study:
        while (candidate := study.ask()) is not None:
            score = height(candidate.counts)
            time.sleep(0.005)
            with log.open("a") as file:
                file.write(f"{candidate.number}\n")
            study.tell(candidate.number, score)


def kill_and_go_on(tmp_path: Path, kills: int, longest: float, budget: int) -> None:
    path, log = tmp_path / "Net.search", tmp_path / "log"
    rng = random.Random(0)
    finished: dict[int, float | None] = {}
    killed = 0
    while True:
        process = multiprocessing.get_context("fork").Process(target=drive, args=(path, log, budget))
        process.start()
        process.join(rng.uniform(0, longest) if killed < kills else None)
        if process.exitcode is None and process.pid is not None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            killed += 1
        else:
            assert process.exitcode == 0
        if path.exists():
            with open_study(space(), "Net", storage=path, budget=budget, seed=5) as study:
                now = {t.number: t.score for t in study.results.complete}
            assert finished.items() <= now.items()
            finished = now
        if process.exitcode == 0:
            break
    results = read_searches(path, space().structure)[0]
    assert sorted(results.trials) == list(range(budget))
    assert not results.failed
    again = Counter(log.read_text().split())
    assert sum(again.values()) <= budget + killed
    assert killed == kills
    with open_study(space(), "Net", budget=budget, seed=5) as study:
        climb(study)
    assert {n: (t.counts, t.score) for n, t in results.trials.items()} == {
        n: (t.counts, t.score) for n, t in study.results.trials.items()
    }


def test_a_driver_killed_at_random_moments_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    kill_and_go_on(tmp_path, kills=5, longest=0.3, budget=60)


@pytest.mark.slow
def test_fifty_kills_change_nothing(tmp_path: Path) -> None:
    kill_and_go_on(tmp_path, kills=50, longest=0.3, budget=250)
