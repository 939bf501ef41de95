"""Evaluations in parallel in local worker processes, each on its own device (or its share of the CPU cores)."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from channelwise.execution import Job
from channelwise.execution.crew import Crew, Worker
from channelwise.execution.devices import usable_cores
from channelwise.execution.evaluator import Evaluator
from channelwise.execution.messages import Died, Message, evaluated, prepared
from channelwise.execution.packing import pack

log = logging.getLogger(__name__)

_SPAWN = multiprocessing.get_context("spawn")


@dataclass(kw_only=True)
class _Process(Worker):
    process: BaseProcess
    connection: Connection
    device: torch.device
    sender: threading.Thread

    def disconnect(self) -> None:
        """Close the connection of a process that has ended, when nothing is written to it any more."""
        self.sender.join()
        self.connection.close()


class WorkerPool(Crew[_Process]):
    """Worker processes that each receive the job once and then only payloads.

    New processes, not forked ones: CUDA and OpenMP do not survive a fork.

    Why not loky, which was tried: its workers outlive a killed parent, its executor knows that a worker died but not
    which task it had, and with psutil it replaces workers whose memory grows by 300 MB, as it does once a model is on a
    GPU or a data set has been read.
    """

    def __init__(self, job: Job, devices: Sequence[torch.device], timeout: float | None = None) -> None:
        super().__init__(timeout)
        self._job = pack(job, importable=True)
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

    def _messages(self, seconds: float) -> list[tuple[int, Message]]:
        told = _readable(self._workers, seconds)
        return [(index, _receive(worker)) for index, worker in enumerate(self._workers) if told[index]]

    def _send(self, worker: _Process, payload: Any) -> None:
        try:
            worker.connection.send(payload)
        except OSError:
            log.debug("Worker %s is gone.", worker.process.pid)

    def _replacement(self, worker: _Process) -> _Process:
        worker.process.kill()  # the only signal that a stopped process, or one deep in native code, listens to
        worker.process.join()
        worker.disconnect()
        worker.process.close()
        return self._start(worker.device)

    def _place(self, worker: _Process) -> str:
        return str(worker.device)

    def _who(self, worker: _Process) -> str:
        return f"worker process {worker.process.pid}"

    def _never_ready(self, how: str) -> str:
        return (
            f"A worker process ended before it was ready ({how}). If the program has no "
            '`if __name__ == "__main__":` guard, put its code under one: worker processes import the program anew.'
        )

    def _start(self, device: torch.device) -> _Process:
        ours, theirs = _SPAWN.Pipe()
        process = _SPAWN.Process(
            target=_work, args=(theirs, device, self._threads, os.getpid()), name=f"channelwise-{device}"
        )
        process.start()
        theirs.close()
        # Not as an argument: a process that dies before it reads its arguments would leave this one waiting forever.
        sender = threading.Thread(target=_send_job, args=(ours, self._job), daemon=True)
        sender.start()
        return _Process(process=process, connection=ours, device=device, sender=sender)


def _send_job(connection: Connection, packed: bytes) -> None:
    # A process that has died is found dead by who waits for its message.
    with suppress(OSError):
        connection.send_bytes(packed)


def _readable(workers: Sequence[_Process], timeout: float) -> list[bool]:
    """Which workers have sent something or have ended, waiting for the first, no longer than ``timeout`` seconds."""
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


def _work(connection: Connection, device: torch.device, threads: int, parent: int) -> None:
    """The life of a worker: receive and prepare the job, then answer payloads with scores until told or orphaned."""
    # Ctrl-C reaches the whole process group; only the parent is to react, and it ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    # A parent that was killed leaves a broken connection: there is nobody left to tell.
    with suppress(OSError, EOFError):
        evaluator, message = prepared(lambda: Evaluator(pickle.loads(connection.recv_bytes()), [device]))
        connection.send(message)
        while evaluator is not None:
            while not connection.poll(2.0):
                if os.getppid() != parent:
                    return
            connection.send(evaluated(evaluator, connection.recv()))
