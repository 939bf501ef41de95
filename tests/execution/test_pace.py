"""Evaluations that hang, and workers that are stopped: they are said, and end where the user says when."""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from typing import Any

import numpy as np
import pytest
import torch

from channelwise.errors import EvaluationError, InvalidArgumentError
from channelwise.execution import pace
from channelwise.execution.inprocess import InProcess
from channelwise.execution.pace import Pace
from channelwise.execution.where import Where
from channelwise.execution.workers import WorkerPool
from tests.execution.contract import tasks
from tests.execution.jobs import HangsUnpacking, Meeting, Square

CPU = torch.device("cpu")


@pytest.mark.parametrize("trouble", ["hang", "stop"])
def test_a_worker_that_takes_longer_than_the_timeout_is_replaced_and_the_others_go_on(
    trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    pool = WorkerPool(Square(), [CPU] * 2, timeout=2.0)
    try:
        results = {result.task.payload: result for result in pool.run(tasks(1, trouble, 2, 3))}
        again = list(pool.run(tasks(4, 5)))
    finally:
        pool.close()
    assert {payload: results[payload].score for payload in (1, 2, 3)} == {1: 1, 2: 4, 3: 9}
    error = results[trouble].error
    assert isinstance(error, EvaluationError)
    assert "Evaluating task 1: it took longer than timeout=2 seconds; worker process" in str(error)
    assert sorted(result.score or 0 for result in again) == [16, 25]
    assert "is replaced" in caplog.text


def test_a_worker_left_hanging_by_an_earlier_run_is_replaced_too() -> None:
    pool = WorkerPool(Square(), [CPU], timeout=2.0)
    try:
        run = pool.run(tasks(1, "hang"))
        next(run)
        run.close()
        pool._workers[0].task = tasks("hang")[0]
        pool._send(pool._workers[0], "hang")
        assert [result.score for result in pool.run(tasks(3))] == [9]
    finally:
        pool.close()


def test_a_worker_that_is_never_ready_is_said_and_ended_after_the_timeout(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pace, "START_SECONDS", 0.1)
    pool = WorkerPool(HangsUnpacking(), [CPU], timeout=4.0)
    try:
        with pytest.raises(EvaluationError, match=r"before it was ready \(it was ended after \d s\)"):
            list(pool.run(tasks(1)))
    finally:
        pool.close()
    assert caplog.text.count("Does importing the program, or what makes the model, hang?") == 1


def test_a_worker_that_is_never_ready_does_not_keep_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "START_SECONDS", 0.1)
    pool = WorkerPool(Square(), [CPU] * 2)
    try:
        hanging = pool._workers[1].process
        assert hanging.pid is not None
        os.kill(hanging.pid, signal.SIGSTOP)
        assert sorted(result.score or 0 for result in pool.run(tasks(1, 2, 3))) == [1, 4, 9]
        pool._timeout = 0.2
        time.sleep(0.3)
        pool._overdue()
        assert pool._workers[1].process is not hanging
    finally:
        pool.close()


def test_an_evaluation_of_ten_times_the_median_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pace, "LEAST_SECONDS", 0.5)
    pool = WorkerPool(Square(), [CPU])
    try:
        run = pool.run(tasks(*range(pace.FEW), "pid", "stop"))
        for _ in range(pace.FEW + 1):
            next(run)
        worker = pool._workers[0]
        worker.slow = False
        # The stopped one never answers: the run is looked at until it has been said.
        while not worker.slow:
            if worker.task is None:
                worker.task, worker.since = tasks("stop")[0], 0.0
            pool._overdue()
        pool._overdue()
    finally:
        pool.close()
    assert caplog.text.count("so far in worker process") == 1
    assert "A timeout= would end it" in caplog.text


def test_a_slow_evaluation_in_this_process_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pace, "LEAST_SECONDS", 0.0)
    executor = InProcess(Square(), [CPU])
    with caplog.at_level(logging.WARNING):
        list(executor.run(tasks(*range(pace.FEW), "pid")))
    assert "Evaluating task 5 has taken" in caplog.text
    assert "in this process" in caplog.text


def test_slow_is_ten_times_the_median_and_nothing_is_known_at_first() -> None:
    known = Pace()
    for seconds in (3.0, 1.0, 2.0, 100.0):
        known.add(seconds)
        assert known.limit is None
    known.add(2.0)
    assert known.limit == 20.0


def test_a_timeout_in_this_process_is_said_to_have_no_effect(caplog: pytest.LogCaptureFixture) -> None:
    Where(timeout=5).place(CPU).start(Square()).close()
    assert "timeout=5 has no effect" in caplog.text


@pytest.mark.parametrize("timeout", [0, -1, math.nan, math.inf, pytest.param(10**400, id="large"), "5", True])
def test_timeouts_that_are_none_are_refused(timeout: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="timeout="):
        Where(timeout=timeout).place(CPU)


@pytest.mark.parametrize("workers", [np.int64(2), np.int32(2), 2])
def test_numbers_of_numpy_are_numbers_of_workers(workers: Any, tmp_path: Any) -> None:
    place = Where(workers=workers).place(CPU)
    executor = place.start(Square())
    try:
        assert executor.capacity == 2
        assert len({result.score for result in executor.run(tasks(*[Meeting(tmp_path, 2)] * 2))}) == 2
    finally:
        executor.close()
