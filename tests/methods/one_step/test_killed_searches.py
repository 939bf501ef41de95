"""A search whose driver is killed at any moment goes on with nothing finished lost and nothing finished done twice."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest

from channelwise.methods import OneStepPruningRunner
from channelwise.search import Evolution, SearchResults, Strategy
from tests.methods.searched import INPUTS, Logged, search, wide

SECONDS = 0.004
"""What an evaluation takes, so that kills fall into it as well as between evaluations."""


def results(folder: Path) -> SearchResults:
    return OneStepPruningRunner(wide(), INPUTS, folder=folder, quiet=True).results()


def killed_at_random(folder: Path, log: Path, candidates: int, strategy: Strategy, rng: random.Random) -> None:
    """Start the search in a process of its own and kill it after some evaluations and a little while."""
    calls = len(Logged(log).calls())
    process = multiprocessing.get_context("fork").Process(
        target=search, args=(folder, log, candidates, SECONDS, strategy)
    )
    process.start()
    wanted = calls + rng.randrange(6)
    give_up = time.monotonic() + 60
    while len(Logged(log).calls()) < wanted and process.is_alive() and time.monotonic() < give_up:
        time.sleep(0.001)
    time.sleep(rng.random() * (0.05 if wanted > calls else 1.0))
    assert process.pid is not None
    assert process.is_alive(), "the search was to be killed before it ended"
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def check(tmp_path: Path, kills: int, strategy: Strategy) -> None:
    folder, log, candidates = tmp_path / ".vai", tmp_path / "calls", 8 * kills + 10
    rng = random.Random(kills)
    finished: dict[int, tuple[dict[str, int], float | None]] = {}
    for _ in range(kills):
        before = len(Logged(log).calls())
        killed_at_random(folder, log, candidates, strategy, rng)
        if not (folder / "Wide.search").exists():
            continue
        new = Logged(log).calls()[before:]
        done = {str([counts[f"body.{3 * i}"] for i in range(6)]) for counts, _ in finished.values()}
        assert done.isdisjoint(new), "a finished candidate was evaluated again"
        now = {t.number: (dict(t.counts), t.score) for t in results(folder).complete}
        assert finished.items() <= now.items(), "a finished candidate was lost"
        finished = now
    assert finished
    search(folder, log, candidates, strategy=strategy)
    assert len(results(folder).complete) == candidates
    # One candidate at a time is in flight: that one and no other is evaluated again.
    assert len(Logged(log).calls()) <= candidates + kills
    assert len(set(Logged(log).calls())) == candidates
    other = tmp_path / "uninterrupted"
    search(other, tmp_path / "other calls", candidates, strategy=strategy)
    uninterrupted = {t.number: (dict(t.counts), t.score) for t in results(other).complete}
    assert {t.number: (dict(t.counts), t.score) for t in results(folder).complete} == uninterrupted


def test_search_killed_three_times_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    check(tmp_path, 3, Evolution())


@pytest.mark.slow
def test_search_killed_fifty_times_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    # Without a model of so many scores, which would take most of the time.
    check(tmp_path, 50, Evolution(children=1))
