"""What every executor promises; the tests of each inherit these and give the fixtures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from channelwise.errors import EvaluationError
from channelwise.execution import Executor, Result, Task
from tests.execution.jobs import Meeting


def tasks(*payloads: Any) -> list[Task]:
    return [Task(f"task {n}", payload) for n, payload in enumerate(payloads)]


def scores(results: Iterator[Result]) -> dict[str, float | None]:
    return {result.task.label: result.score for result in results}


class ExecutorContract:
    """``executor`` runs `tests.execution.jobs.Square`."""

    def test_every_task_is_answered_once(self, executor: Executor) -> None:
        given = tasks(*range(20))
        assert sorted((r.task.payload, r.score) for r in executor.run(given)) == [(n, n**2) for n in range(20)]

    def test_no_tasks_no_results(self, executor: Executor) -> None:
        assert list(executor.run([])) == []

    def test_task_that_raises_has_a_result_with_the_users_error_and_the_others_go_on(self, executor: Executor) -> None:
        results = {r.task.label: r for r in executor.run(tasks(2, "raise", 3, 4))}
        failure = results["task 1"].error
        assert isinstance(failure, EvaluationError)
        assert str(failure).startswith("Evaluating task 1: eval_fn raised KeyError")
        assert isinstance(failure.__cause__, KeyError)
        assert results["task 1"].score is None
        assert [results[f"task {n}"].score for n in (0, 2, 3)] == [4, 9, 16]

    def test_error_of_a_class_that_cannot_travel_keeps_its_name_and_text(self, executor: Executor) -> None:
        (result,) = executor.run(tasks("raise own"))
        assert str(result.error) == "Evaluating task 0: eval_fn raised OwnError: not found"
        assert result.error is not None
        assert type(result.error.__cause__).__name__ == "OwnError"

    def test_bad_score_is_reported_with_the_task(self, executor: Executor) -> None:
        (result,) = executor.run(tasks("score"))
        assert str(result.error) == "Evaluating task 0: eval_fn returned None"

    def test_next_task_is_taken_when_a_worker_is_free_and_results_are_delivered(self, executor: Executor) -> None:
        delivered = 0
        in_flight = []

        def source() -> Iterator[Task]:
            for number, task in enumerate(tasks(*range(8))):
                in_flight.append(number + 1 - delivered)
                yield task

        for _ in executor.run(source()):
            delivered += 1
        assert max(in_flight) <= executor.capacity
        assert delivered == 8

    def test_later_tasks_can_depend_on_earlier_scores(self, executor: Executor) -> None:
        seen = [2.0]

        def source() -> Iterator[Task]:
            while max(seen) < 1000:
                yield Task("square", max(seen))

        for result in executor.run(source()):
            assert result.score is not None
            seen.append(result.score)
        assert max(seen) == 65536

    def test_error_in_the_callers_iterator_is_the_callers(self, executor: Executor) -> None:
        def source() -> Iterator[Task]:
            yield Task("one", 1)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            list(executor.run(source()))

    def test_run_that_was_left_does_not_show_in_the_next(self, executor: Executor) -> None:
        list(executor.run(tasks(*["pid"] * 2 * executor.capacity)))  # all workers are up
        left = executor.run([Task("left", payload) for payload in (1, "pid", 3)])
        next(left)
        assert scores(executor.run(tasks(7, 8))) == {"task 0": 49, "task 1": 64}


class WorkersContract(ExecutorContract):
    """Of executors with at least two workers in other processes."""

    def test_work_is_spread_over_the_workers(self, executor: Executor, tmp_path: Path) -> None:
        meeting = Meeting(tmp_path, executor.capacity)
        pids = {r.score for r in executor.run(tasks(*[meeting] * 6))}
        assert len(pids) == executor.capacity >= 2
        assert os.getpid() not in pids

    def test_task_of_a_killed_worker_is_repeated(
        self, executor: Executor, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        given = tasks(2, tmp_path / "mark", 3)
        assert scores(executor.run(given)) == {"task 0": 4, "task 1": 1, "task 2": 9}
        assert "A worker died" in caplog.text
        assert "task 1" in caplog.text
