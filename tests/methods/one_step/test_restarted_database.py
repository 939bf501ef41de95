"""Machines that share a search in a PostgreSQL database, which restarts; and one of them is killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from channelwise.methods import OneStepPruningRunner
from channelwise.search import read_searches
from tests.methods.one_step.postgresql import Server, server
from tests.methods.searched import INPUTS, Logged, wide

pytestmark = pytest.mark.slow
CANDIDATES, DRIVERS = 60, 3


@pytest.fixture
def database() -> Iterator[Server]:
    with server() as started:
        yield started


def drive(url: str, log: Path, said: Path) -> None:
    """One driver: evaluates what is missing of the search."""
    import logging

    logging.basicConfig(filename=said, level=logging.INFO)
    runner = OneStepPruningRunner(wide(), INPUTS, storage=url, quiet=True)
    evaluate = Logged(log, 0.1)
    runner.search(eval_fn=evaluate, num_subnet=CANDIDATES, channel_divisible=1, strategy="random")


@pytest.mark.parametrize("how", ["fast", "immediate"])
def test_a_shared_search_outlives_a_restart_of_its_database_and_the_death_of_a_driver(
    database: Server, tmp_path: Path, how: str
) -> None:
    log, context = tmp_path / "calls", multiprocessing.get_context("spawn")
    said = [tmp_path / f"said {i}" for i in range(DRIVERS)]
    drivers = [context.Process(target=drive, args=(database.url, log, said[i])) for i in range(DRIVERS)]
    for driver in drivers:
        driver.start()
    _wait_for(log, CANDIDATES // 4)
    database.stop(how)
    time.sleep(3)
    database.start()
    _wait_for(log, CANDIDATES // 2)
    assert drivers[0].pid is not None
    os.kill(drivers[0].pid, signal.SIGKILL)
    for driver in drivers:
        driver.join(300)
    texts = [path.read_text() for path in said]
    assert [driver.exitcode for driver in drivers] == [-signal.SIGKILL, 0, 0], "\n".join(texts)
    (found,) = read_searches(database.url, OneStepPruningRunner(wide(), INPUTS, quiet=True)._graph.structure)
    assert Counter(trial.state for trial in found.trials.values()) == {"complete": CANDIDATES}
    assert len({str(trial.counts) for trial in found.complete}) == CANDIDATES
    # The killed driver had one in hand.
    assert len(Logged(log).calls()) <= CANDIDATES + 1
    assert all("does not answer" in text and "answers again" in text for text in texts[1:])
    assert not any("No sign of life" in text for text in texts)


def test_a_database_that_stays_away_is_an_error_that_names_it(
    database: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from channelwise.errors import ResultsFileError
    from channelwise.search import patience

    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 1.0)
    calls = []

    def evaluate(model: object) -> float:
        calls.append(model)
        if len(calls) == 3:
            database.stop()
        return float(len(calls))

    runner = OneStepPruningRunner(wide(), INPUTS, storage=database.url, quiet=True)
    with pytest.raises(ResultsFileError, match=r"Cannot reach postgresql.*search goes on from there"):
        runner.search(eval_fn=evaluate, num_subnet=10, channel_divisible=1, strategy="random")
    database.start()
    runner.search(eval_fn=evaluate, num_subnet=10, channel_divisible=1, strategy="random")
    assert len(runner.results().complete) == 10


def _wait_for(log: Path, calls: int) -> None:
    give_up = time.monotonic() + 120
    while len(Logged(log).calls()) < calls:
        assert time.monotonic() < give_up, "the drivers do not evaluate"
        time.sleep(0.05)
