"""Evaluations in worker processes: nothing is lost when one dies, and errors come back as if raised here."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from channelwise.errors import EvaluationError
from channelwise.execution.workers import WorkerPool
from tests.execution.contract import WorkersContract, tasks
from tests.execution.jobs import DiesUnpacking, LoaderSum, Local, NotReady, Square

TWO = [torch.device("cpu")] * 2


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    """One for all tests, which may kill its workers: new ones take seconds to start."""
    pool = WorkerPool(Local(), TWO)
    yield pool
    pool.close()


class TestWorkerPool(WorkersContract):
    @pytest.fixture
    def executor(self, pool: WorkerPool) -> WorkerPool:
        return pool


def test_worker_killed_from_outside_is_replaced(pool: WorkerPool) -> None:
    run = pool.run(tasks("pid", *range(40)))
    next(run)
    os.kill(pool._workers[0].process.pid or 0, signal.SIGKILL)
    assert len(list(run)) == 40


def test_worker_killed_while_it_starts_is_replaced_once_another_has_started(pool: WorkerPool) -> None:
    run = pool.run(tasks("pid", *range(40)))
    next(run)
    pool._workers[0].ready = False
    os.kill(pool._workers[0].process.pid or 0, signal.SIGKILL)
    assert len(list(run)) == 40


def test_task_that_kills_three_workers_fails_and_the_others_go_on(pool: WorkerPool) -> None:
    results = {r.task.label: r for r in pool.run(tasks("die", 2))}
    assert re.match(r"Evaluating task 0: 3 worker processes died .*SIGKILL.*memory", str(results["task 0"].error))
    assert results["task 1"].score == 4


def test_users_error_carries_the_workers_traceback(pool: WorkerPool, caplog: pytest.LogCaptureFixture) -> None:
    (result,) = pool.run(tasks("raise"))
    assert result.error is not None
    notes = getattr(result.error.__cause__, "__notes__", [caplog.text])
    assert "in __call__" in notes[0]


def test_workers_end_with_the_pool() -> None:
    pool = WorkerPool(Square(), TWO)
    processes = [worker.process for worker in pool._workers]
    pids = [process.pid for process in processes]
    pool.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid or 0, 0)


def test_job_that_cannot_be_prepared_is_an_error() -> None:
    pool = WorkerPool(NotReady(), TWO)
    with pytest.raises(EvaluationError, match="could not start on cpu: ValueError: no room"):
        list(pool.run(tasks(1)))
    pool.close()


def test_error_of_a_class_of_the_program_is_of_that_class() -> None:
    class MyError(Exception):
        pass

    class Raises(Square):
        def __call__(self, payload: float) -> float:
            raise MyError("mine")

    own = WorkerPool(Raises(), TWO[:1])
    try:
        (result,) = own.run(tasks(1))
    finally:
        own.close()
    assert result.error is not None
    assert isinstance(result.error.__cause__, MyError)


def test_loader_with_an_open_iterator_works_in_workers() -> None:
    loader = DataLoader(torch.arange(32), batch_size=4, num_workers=1, persistent_workers=True)
    here = sum(int(batch.sum()) for batch in loader)
    pool = WorkerPool(LoaderSum(loader), TWO)
    try:
        assert [r.score for r in pool.run(tasks(1, 2, 3, 4))] == [here] * 4
    finally:
        pool.close()
    assert sum(int(batch.sum()) for batch in loader) == here


def test_workers_share_the_cores() -> None:
    pool = WorkerPool(Square(), TWO)
    try:
        threads = {r.score for r in pool.run(tasks("threads", "threads"))}
    finally:
        pool.close()
    assert threads == {max(1, len(os.sched_getaffinity(0)) // 2)}


def test_worker_that_ends_before_it_is_ready_hints_at_the_main_guard() -> None:
    pool = WorkerPool(DiesUnpacking(), TWO[:1])
    try:
        with pytest.raises(EvaluationError, match=r"exit code 3.*__main__"):
            list(pool.run(tasks(1)))
    finally:
        pool.close()


NO_GUARD = """
import torch
from channelwise.execution import Task
from channelwise.execution.workers import WorkerPool
from tests.execution.jobs import Large
list(WorkerPool(Large(), [torch.device("cpu")]).run([Task("a", 1)]))
"""


def test_program_without_a_main_guard_ends_with_the_hint_also_when_the_job_is_large(tmp_path: Path) -> None:
    # The worker ends before it has read a job that does not fit into a pipe.
    (tmp_path / "main.py").write_text(NO_GUARD)
    command = [sys.executable, str(tmp_path / "main.py")]
    process = subprocess.run(command, capture_output=True, text=True, check=False, env=environment(), timeout=100)
    assert "EvaluationError" in process.stderr
    assert 'if __name__ == "__main__":' in process.stderr


ORPHANS = """
import os, sys, torch
from channelwise.execution import Task
from channelwise.execution.workers import WorkerPool
from tests.execution.jobs import Square
if __name__ == "__main__":
    pool = WorkerPool(Square(), [torch.device("cpu")] * 2)
    list(pool.run([Task("a", 1), Task("b", 2)]))
    with open(sys.argv[1], "w") as file:
        print(*[w.process.pid for w in pool._workers], file=file)
    os.kill(os.getpid(), 9)
"""


def test_workers_do_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(ORPHANS)
    # Files, not pipes: whoever reads a pipe waits for the workers that inherit it.
    with (tmp_path / "errors").open("w") as errors:
        command = [sys.executable, str(tmp_path / "main.py"), str(tmp_path / "pids")]
        subprocess.run(command, stdout=errors, stderr=errors, check=False, env=environment())
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    deadline = time.monotonic() + 20
    while any(map(running, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    survivors = [pid for pid in pids if running(pid)]
    for pid in survivors:
        os.kill(pid, signal.SIGKILL)
    assert len(pids) == 2
    assert not survivors
    assert (tmp_path / "errors").read_text() == ""


KILLED_AT_WORK = """
import os, torch
from channelwise.execution import Task
from channelwise.execution.workers import WorkerPool
from tests.execution.jobs import Square
if __name__ == "__main__":
    pool = WorkerPool(Square(), [torch.device("cpu")] * 2)
    for result in pool.run([Task("a", "pid")] * 9):
        os.kill(os.getpid(), 9)
"""


def test_workers_of_a_parent_killed_at_work_end_without_a_traceback(tmp_path: Path) -> None:
    # They find nobody to send their scores to.
    (tmp_path / "main.py").write_text(KILLED_AT_WORK)
    command = [sys.executable, str(tmp_path / "main.py")]
    process = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    assert process.returncode == -9
    assert process.stderr == ""


def environment() -> dict[str, str]:
    root = Path(__file__).parents[2]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "src")])}


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
