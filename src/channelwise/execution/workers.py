"""Evaluations in parallel in local worker processes, each on its own device (or its share of the CPU cores)."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from channelwise.errors import InvalidArgumentError
from channelwise.execution import Job
from channelwise.execution.crew import Crew, Worker
from channelwise.execution.devices import usable_cores
from channelwise.execution.evaluator import Evaluator
from channelwise.execution.messages import Died, Message, evaluated, prepared
from channelwise.execution.packing import bound_to_this_process, forget_open_iterators, pack, why_unpicklable

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class _Process(Worker):
    process: BaseProcess
    connection: Connection
    device: torch.device
    sender: threading.Thread | None

    def disconnect(self) -> None:
        """Close the connection of a process that has ended, when nothing is written to it any more."""
        if self.sender is not None:
            self.sender.join()
        self.connection.close()


class WorkerPool(Crew[_Process]):
    """Worker processes that each receive the job once and then only payloads.

    Workers are spawned; where the job cannot be pickled (a lambda, a function defined inside another) they are forked,
    if the platform can and CUDA is not in use.
    """

    def __init__(self, job: Job, devices: Sequence[torch.device]) -> None:
        super().__init__()
        self._context, self._job = _transport(job, devices)
        self._threads = max(1, usable_cores() // len(devices))
        try:
            for device in devices:
                self._workers.append(self._start(device))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join(5)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.disconnect()
            worker.process.close()
        self._workers.clear()

    def _messages(self, *, wait: bool) -> list[tuple[int, Message]]:
        told = _readable(self._workers, None if wait else 0)
        return [(index, _receive(worker)) for index, worker in enumerate(self._workers) if told[index]]

    def _send(self, worker: _Process, payload: Any) -> None:
        try:
            worker.connection.send(payload)
        except OSError:
            log.debug("Worker %s is gone.", worker.process.pid)

    def _replacement(self, worker: _Process) -> _Process:
        worker.disconnect()
        worker.process.close()
        return self._start(worker.device)

    def _place(self, worker: _Process) -> str:
        return str(worker.device)

    def _never_ready(self, how: str) -> str:
        return (
            f"A worker process ended before it was ready ({how}). If the program has no "
            '`if __name__ == "__main__":` guard, put its code under one: worker processes import the program anew.'
        )

    def _start(self, device: torch.device) -> _Process:
        ours, theirs = self._context.Pipe()
        # Not as an argument: a process that dies before it reads its arguments would leave this one waiting forever.
        job = None if isinstance(self._job, bytes) else self._job
        process = self._context.Process(  # type: ignore[attr-defined]
            target=_work, args=(theirs, job, device, self._threads, os.getpid()), name=f"channelwise-{device}"
        )
        process.start()
        theirs.close()
        sender = None
        if isinstance(self._job, bytes):
            sender = threading.Thread(target=_send_job, args=(ours, self._job), daemon=True)
            sender.start()
        return _Process(process=process, connection=ours, device=device, sender=sender)


def _send_job(connection: Connection, packed: bytes) -> None:
    # A process that has died is found dead by who waits for its message.
    with suppress(OSError):
        connection.send_bytes(packed)


def _readable(workers: Sequence[_Process], timeout: float | None) -> list[bool]:
    """Which workers have sent something or have ended, waiting for the first."""
    connections: list[Any] = [worker.connection for worker in workers]
    found = set(wait([*connections, *(worker.process.sentinel for worker in workers)], timeout))
    return [worker.connection in found or worker.process.sentinel in found for worker in workers]


def _receive(worker: _Process) -> Message:
    # A worker that was killed may have left a whole message, a part of one, or none.
    try:
        if worker.connection.poll():
            message: Message = worker.connection.recv()
            return message
    except (EOFError, OSError):
        log.debug("The connection to worker %s has ended.", worker.process.pid)
    worker.process.join()
    return Died(_exit_text(worker.process.exitcode))


def _exit_text(code: int | None) -> str:
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


def _transport(job: Job, devices: Sequence[torch.device]) -> tuple[BaseContext, Job | bytes]:
    """The start method, and the job in the form that goes with it: bytes for spawn, the object itself for fork."""
    shareable = True
    try:
        packed = pack(job)
        if b"__main__" not in packed or _importable_main():
            return multiprocessing.get_context("spawn"), packed
        why = "it is defined in an interactive session"
    except Exception as error:  # pickling runs the user's classes: anything can be raised
        why = why_unpicklable(error)
        shareable = not bound_to_this_process(error)
    cuda = torch.cuda.is_initialized() or any(device.type == "cuda" for device in devices)
    if shareable and not cuda and "fork" in multiprocessing.get_all_start_methods():
        log.info("Workers are forked: eval_fn, its arguments or the model cannot be sent to new processes (%s).", why)
        return multiprocessing.get_context("fork"), job
    raise InvalidArgumentError(
        f"eval_fn, its arguments or the model cannot be sent to worker processes ({why}). Define eval_fn and the "
        "model's classes at the top level of a module, not as a lambda or inside a function, and open files and "
        "iterators inside eval_fn; or evaluate in this process (a single entry in gpus, no workers), or with "
        "executor='ray', which can send lambdas and what a notebook defines."
    )


def _importable_main() -> bool:
    """Whether a spawned process can import the running program again (not so in a notebook or from stdin)."""
    main = sys.modules["__main__"]
    return getattr(main, "__spec__", None) is not None or os.path.exists(getattr(main, "__file__", None) or "")


def _work(connection: Connection, job: Job | None, device: torch.device, threads: int, parent: int) -> None:
    """The life of a worker: get and prepare the job, then answer payloads with scores until told or orphaned.

    A forked process has the ``job``, a spawned one receives it packed.
    """
    # Ctrl-C reaches the whole process group; only the parent is to react, and it ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if job is None:
        torch.set_num_threads(threads)
    else:
        # OpenMP's thread pool does not survive a fork: a forked worker with several threads hangs.
        torch.set_num_threads(1)
        forget_open_iterators()
    # A parent that was killed leaves a broken connection: there is nobody left to tell.
    with suppress(OSError, EOFError):
        evaluator, message = prepared(
            lambda: Evaluator(pickle.loads(connection.recv_bytes()) if job is None else job, [device])
        )
        connection.send(message)
        while evaluator is not None:
            while not connection.poll(2.0):
                if os.getppid() != parent:
                    return
            connection.send(evaluated(evaluator, connection.recv()))
