"""Evaluations in worker processes: nothing is lost when one dies, and errors come back as if raised here."""

from __future__ import annotations

import logging
import multiprocessing
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

from channelwise.errors import EvaluationError, InvalidArgumentError
from channelwise.execution.workers import WorkerPool
from tests.execution.contract import WorkersContract, tasks
from tests.execution.jobs import DiesUnpacking, LoaderSum, NotReady, Square, Unpicklable

TWO = [torch.device("cpu")] * 2
forks = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    """Forked: quick to start."""
    pool = WorkerPool(Unpicklable(), TWO)
    yield pool
    pool.close()


@forks
class TestWorkerPool(WorkersContract):
    @pytest.fixture
    def executor(self, pool: WorkerPool) -> WorkerPool:
        return pool


@forks
def test_worker_killed_from_outside_is_replaced(pool: WorkerPool) -> None:
    run = pool.run(tasks("pid", *range(40)))
    next(run)
    os.kill(pool._workers[0].process.pid or 0, signal.SIGKILL)
    assert len(list(run)) == 40


@forks
def test_worker_killed_while_it_starts_is_replaced_once_another_has_started(pool: WorkerPool) -> None:
    run = pool.run(tasks("pid", *range(40)))
    next(run)
    pool._workers[0].ready = False
    os.kill(pool._workers[0].process.pid or 0, signal.SIGKILL)
    assert len(list(run)) == 40


@forks
def test_task_that_kills_three_workers_fails_and_the_others_go_on(pool: WorkerPool) -> None:
    results = {r.task.label: r for r in pool.run(tasks("die", 2))}
    assert re.match(r"Evaluating task 0: 3 worker processes died .*SIGKILL.*memory", str(results["task 0"].error))
    assert results["task 1"].score == 4


@forks
def test_users_error_carries_the_workers_traceback(pool: WorkerPool, caplog: pytest.LogCaptureFixture) -> None:
    (result,) = pool.run(tasks("raise"))
    assert result.error is not None
    notes = getattr(result.error.__cause__, "__notes__", [caplog.text])
    assert "in __call__" in notes[0]


@forks
def test_forked_workers_use_one_thread(pool: WorkerPool) -> None:
    assert {r.score for r in pool.run(tasks("threads", "threads"))} == {1}


@forks
def test_workers_end_with_the_pool(pool: WorkerPool) -> None:
    processes = [worker.process for worker in pool._workers]
    pids = [process.pid for process in processes]
    pool.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid or 0, 0)


@forks
def test_job_that_cannot_be_prepared_is_an_error() -> None:
    job = NotReady()
    job.local = lambda: None  # type: ignore[attr-defined]
    pool = WorkerPool(job, TWO)
    with pytest.raises(EvaluationError, match="could not start on cpu: ValueError: no room"):
        list(pool.run(tasks(1)))
    pool.close()


def test_unpicklable_job_cannot_go_to_cuda_workers() -> None:
    with pytest.raises(InvalidArgumentError, match="top level of a module"):
        WorkerPool(Unpicklable(), [torch.device("cuda:0")])


@forks
def test_loader_with_an_open_iterator_works_in_forked_workers() -> None:
    loader = DataLoader(torch.arange(32), batch_size=4, num_workers=1, persistent_workers=True)
    here = sum(int(batch.sum()) for batch in loader)
    pool = WorkerPool(LoaderSum(loader, lambda: None), TWO)
    try:
        assert [r.score for r in pool.run(tasks(1, 2, 3, 4))] == [here] * 4
    finally:
        pool.close()
    assert sum(int(batch.sum()) for batch in loader) == here


def test_what_belongs_to_one_process_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("1")
    with (tmp_path / "data").open() as file, pytest.raises(InvalidArgumentError, match="open files inside eval_fn"):
        WorkerPool(LoaderSum(file), TWO)
    with pytest.raises(InvalidArgumentError, match="a generator can be read only once"):
        WorkerPool(LoaderSum(number for number in range(3)), TWO)


def test_spawned_workers_share_the_cores(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        pool = WorkerPool(Square(), TWO)
    try:
        threads = {r.score for r in pool.run(tasks("threads", "threads"))}
    finally:
        pool.close()
    assert threads == {max(1, len(os.sched_getaffinity(0)) // 2)}
    assert "forked" not in caplog.text


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
from tests.execution.jobs import Unpicklable
pool = WorkerPool(Unpicklable(), [torch.device("cpu")] * 2)
list(pool.run([Task("a", 1), Task("b", 2)]))
with open(sys.argv[1], "w") as file:
    print(*[w.process.pid for w in pool._workers], file=file)
os.kill(os.getpid(), 9)
"""


@forks
def test_workers_do_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    # Files, not pipes: whoever reads a pipe waits for the workers that inherit it.
    with (tmp_path / "errors").open("w") as errors:
        command = [sys.executable, "-c", ORPHANS, str(tmp_path / "pids")]
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
