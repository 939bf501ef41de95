"""Evaluations in parallel in local worker processes, each on its own device (or its share of the CPU cores)."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from channelwise.errors import EvaluationError, InvalidArgumentError
from channelwise.execution import Job, Result, Task
from channelwise.execution.devices import usable_cores
from channelwise.execution.inprocess import failed, on_device

log = logging.getLogger(__name__)

MAX_DEATHS = 3
"""After so many workers have died on one task it is given up."""


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    device: torch.device
    task: Task | None = None
    ready: bool = False


class WorkerPool:
    """Worker processes that each receive the job once and then only payloads.

    A worker that dies is replaced and its task repeated. Workers are spawned; where the job cannot be pickled (a
    lambda, a function defined inside another) they are forked, if the platform can and CUDA is not in use.
    """

    def __init__(self, job: Job, devices: Sequence[torch.device]) -> None:
        self._context, self._job = _transport(job, devices)
        self._threads = max(1, usable_cores() // len(devices))
        self._workers: list[_Worker] = []
        try:
            for device in devices:
                self._workers.append(self._start(device))
        except BaseException:
            self.close()
            raise

    def run(self, tasks: Sequence[Task]) -> Iterator[Result]:
        waiting = deque(tasks)
        deaths: dict[int, int] = {}
        unfinished = len(waiting)
        while unfinished:
            for worker in self._workers:
                if worker.ready and worker.task is None and waiting:
                    self._assign(worker, waiting.popleft())
            connections: list[Any] = [w.connection for w in self._workers]
            readable = set(wait([*connections, *(w.process.sentinel for w in self._workers)]))
            for index, worker in enumerate(self._workers):
                if worker.connection not in readable and worker.process.sentinel not in readable:
                    continue
                message = _receive(worker)
                if message is None:
                    self._replace(index, waiting, deaths)
                elif message[0] == "ready":
                    worker.ready = True
                elif message[0] == "broken":
                    raise EvaluationError(f"A worker process could not start on {worker.device}: {message[1]}")
                else:
                    task, worker.task = worker.task, None
                    assert task is not None
                    if message[0] == "error":
                        error = _exception(message[1], message[2])
                        raise failed(task, error) from error
                    unfinished -= 1
                    yield Result(task, message[1], message[2])

    def close(self) -> None:
        for worker in self._workers:
            worker.connection.close()
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join(5)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.process.close()
        self._workers.clear()

    def _start(self, device: torch.device) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(  # type: ignore[attr-defined]
            target=_work, args=(theirs, self._job, device, self._threads, os.getpid()), name=f"channelwise-{device}"
        )
        process.start()
        theirs.close()
        return _Worker(process, ours, device)

    def _assign(self, worker: _Worker, task: Task) -> None:
        worker.task = task
        # A worker that has just died refuses the message; the loop then finds it dead and repeats the task.
        try:
            worker.connection.send(task.payload)
        except OSError:
            log.debug("Worker %s is gone.", worker.process.pid)

    def _replace(self, index: int, waiting: deque[Task], deaths: dict[int, int]) -> None:
        worker = self._workers[index]
        worker.connection.close()
        worker.process.join()
        how = _exit_text(worker.process.exitcode)
        if not worker.ready:
            raise EvaluationError(
                f"A worker process ended before it was ready ({how}). If the program has no "
                '`if __name__ == "__main__":` guard, put its code under one: worker processes import the program anew.'
            )
        if worker.task is not None:
            deaths[id(worker.task)] = died = deaths.get(id(worker.task), 0) + 1
            if died >= MAX_DEATHS:
                raise EvaluationError(
                    f"Evaluating {worker.task.label}: {died} worker processes died on it, one after the other "
                    f"(the last: {how}). Is there enough memory? Fewer workers need less."
                )
            log.warning("A worker died (%s) on %s; starting another and repeating.", how, worker.task.label)
            waiting.appendleft(worker.task)
        else:
            log.warning("An idle worker died (%s); starting another.", how)
        worker.process.close()
        self._workers[index] = self._start(worker.device)


def _transport(job: Job, devices: Sequence[torch.device]) -> tuple[BaseContext, Job | bytes]:
    """The start method, and the job in the form that goes with it: bytes for spawn, the object itself for fork."""
    try:
        packed = pickle.dumps(job)
        if b"__main__" not in packed or _importable_main():
            return multiprocessing.get_context("spawn"), packed
        why = "it is defined in an interactive session"
    except Exception as error:  # pickling runs the user's classes: anything can be raised
        why = f"{type(error).__name__}: {error}"
    cuda = torch.cuda.is_initialized() or any(device.type == "cuda" for device in devices)
    if "fork" in multiprocessing.get_all_start_methods() and not cuda:
        log.info("Workers are forked: eval_fn, its arguments or the model cannot be sent to new processes (%s).", why)
        return multiprocessing.get_context("fork"), job
    raise InvalidArgumentError(
        f"eval_fn, its arguments or the model cannot be sent to worker processes ({why}). Define eval_fn and the "
        "model's classes at the top level of a module, not as a lambda or inside a function, or evaluate in this "
        "process (a single entry in gpus, no workers)."
    )


def _importable_main() -> bool:
    """Whether a spawned process can import the running program again (not so in a notebook or from stdin)."""
    main = sys.modules["__main__"]
    return getattr(main, "__spec__", None) is not None or os.path.exists(getattr(main, "__file__", None) or "")


def _receive(worker: _Worker) -> tuple[Any, ...] | None:
    """The next message of a worker; None when it has died without one."""
    try:
        return worker.connection.recv() if worker.connection.poll() else None
    except (EOFError, OSError):
        return None


def _exit_text(code: int | None) -> str:
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


def _exception(pickled: bytes | None, text: str) -> BaseException:
    """What the worker raised, with the worker's traceback as a note."""
    error: BaseException = RuntimeError(text.strip().splitlines()[-1])
    if pickled is not None:
        # The user's exception class may not survive the way back; then its text has to do.
        try:
            error = pickle.loads(pickled)
        except Exception as problem:
            log.debug("Cannot rebuild the worker's exception: %s", problem)
    if sys.version_info >= (3, 11):
        error.add_note(f"In the worker process:\n{text}")
    else:
        log.error("In the worker process:\n%s", text)
    return error


def _work(connection: Connection, packed: Job | bytes, device: torch.device, threads: int, parent: int) -> None:
    """The life of a worker: unpack and prepare the job, then answer payloads with scores until told or orphaned."""
    # Ctrl-C reaches the whole process group; only the parent is to react, and it ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # OpenMP's thread pool does not survive a fork: a forked worker with several threads hangs.
    torch.set_num_threads(threads if isinstance(packed, bytes) else 1)
    try:
        job: Job = pickle.loads(packed) if isinstance(packed, bytes) else packed
        with on_device(device):
            job.prepare(device)
    except Exception as error:
        with suppress(OSError):
            connection.send(("broken", f"{type(error).__name__}: {error}"))
        return
    # A parent that was killed leaves a broken connection: there is nobody left to tell.
    with on_device(device), suppress(OSError, EOFError):
        connection.send(("ready",))
        while True:
            while not connection.poll(2.0):
                if os.getppid() != parent:
                    return
            payload = connection.recv()
            start = time.perf_counter()
            try:
                score = job(payload)
            except Exception as error:
                connection.send(("error", _pickled(error), traceback.format_exc()))
            else:
                connection.send(("score", score, time.perf_counter() - start))


def _pickled(error: Exception) -> bytes | None:
    try:
        data = pickle.dumps(error)
        pickle.loads(data)
    except Exception:  # an exception class of the user's that cannot travel: the text goes instead
        return None
    return data
