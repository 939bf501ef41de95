"""Evaluations on a Ray cluster: one actor per GPU or CPU slot, the job sent once through the object store."""

from __future__ import annotations

import logging
import os
import pickle
import re
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import ray.util.client
import torch
from ray.exceptions import RayError

from channelwise.errors import EvaluationError, InvalidArgumentError
from channelwise.execution import Job
from channelwise.execution.crew import MAX_DEATHS, Crew, Worker
from channelwise.execution.devices import usable_cores
from channelwise.execution.evaluator import Evaluator
from channelwise.execution.messages import Died, Message, evaluated, prepared
from channelwise.execution.packing import pack

log = logging.getLogger(__name__)

REACH_SECONDS = 5.0
PATIENCE_SECONDS = 30.0
"""When no worker has got a place on the cluster for so long, it is said."""
CHECK_SECONDS = 5.0
HEAD_SECONDS = 25.0
"""When nobody has listened at the head of the cluster for so long, it is dead. Ray itself ends this program, without an
exception, when that lasts for a minute."""


_KEPT = "What is finished is kept. Start the cluster again, and call the same again to go on."


@dataclass(frozen=True)
class Slot:
    """What one worker asks the cluster for, and the threads it may use."""

    gpus: int
    cpus: int
    threads: int


@dataclass(kw_only=True)
class _Actor(Worker):
    handle: Any
    reply: Any


class RayCluster(Crew[_Actor]):
    """Actors that each receive the job once and then only payloads; Ray decides where they live.

    A cluster that this program is connected to already (`ray.init` was called) is used and left connected. Otherwise
    closing ends the connection, and the local Ray if one was started.

    Args:
        job: What to run. It may hold lambdas and functions of a notebook.
        address: "ray" for the cluster that ``RAY_ADDRESS`` names or `ray start` started on this machine, or else a
            local Ray started for the purpose. Or the address of a cluster, "ray://host:port" or "host:port".
        workers: How many actors; by default one for every GPU of the cluster, or every CPU if it has no GPU.
        most: Never more than this.
        timeout: Seconds after which the actor of an evaluation is ended and replaced.
        device: Where the user's model is: the CPU is what is tried where eval_fn does not work on a GPU.

    Raises:
        InvalidArgumentError: the cluster cannot be reached, or the job cannot be sent.
        EvaluationError: a local Ray cannot be started, or the cluster has no resources.
    """

    max_failed_starts = MAX_DEATHS
    starts_at_once = False

    def __init__(
        self,
        job: Job,
        *,
        device: torch.device,
        timeout: float | None = None,
        address: str = "ray",
        workers: int | None = None,
        most: int | None = None,
    ) -> None:
        super().__init__(timeout)
        packed = pack(job, importable=False)
        self._connected_here = not ray.is_initialized()
        alone = connect(address, workers)
        self._lost = False
        # The head that a client talks to through a server need not be reachable from here; the server tells.
        self._head = "" if ray.util.client.ray.is_connected() else str(ray.get_runtime_context().gcs_address)
        self._answered = self._checked = time.monotonic()
        try:
            count, self._slot = slots(ray.nodes(), workers=workers, most=most, alone=alone)
            self._fallback = device.type == "cpu"
            self._job = ray.put(packed)
            self._patient_until: float | None = time.monotonic() + PATIENCE_SECONDS
            self._workers.extend(self._start() for _ in range(count))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        try:
            for worker in self._workers if not self._lost else ():
                with self._reaching():
                    ray.kill(worker.handle)
        finally:
            self._workers.clear()
            if self._connected_here and ray.is_initialized():
                ray.shutdown()

    def _messages(self, seconds: float) -> list[tuple[int, Message]]:
        refs = [worker.reply for worker in self._workers if worker.reply is not None]
        messages = []
        with self._reaching():
            done, _ = ray.wait(refs, timeout=seconds) if refs else ([], [])
            if not done:
                self._check_head()
            if seconds and not done:
                self._mention_waiting()
            for index, worker in enumerate(self._workers):
                if worker.reply in done:
                    messages.append((index, _receive(worker.reply)))
                    worker.reply = None
        return messages

    def _send(self, worker: _Actor, payload: Any) -> None:
        # As bytes, because arrays that Ray unpacks itself cannot be written to.
        with self._reaching():
            worker.reply = worker.handle.evaluate.remote(pickle.dumps(payload))

    def _replacement(self, worker: _Actor) -> _Actor:
        # An actor given up for another reason than its death would go on holding its slot.
        with self._reaching():
            ray.kill(worker.handle)
        return self._start()

    def _place(self, worker: _Actor) -> str:
        return "the Ray cluster"

    def _never_ready(self, how: str) -> str:
        return (
            f"{MAX_DEATHS} workers on the Ray cluster ended before they were ready ({how}). Channelwise and the "
            "modules of your model and eval_fn must be importable on every node: install them there, or call "
            "ray.init(address, runtime_env={'working_dir': '.'}) yourself first."
        )

    def _start(self) -> _Actor:
        slot = self._slot
        with self._reaching():
            handle = _remote_worker.options(num_gpus=slot.gpus, num_cpus=slot.cpus).remote()
            return _Actor(handle=handle, reply=handle.prepare.remote(self._job, slot, self._fallback))

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """Turn a connection that is lost into an EvaluationError."""
        try:
            yield
        except (ConnectionError, RayError) as error:
            self._lost = True
            raise EvaluationError(f"The connection to the Ray cluster is lost: {error}. {_KEPT}") from error

    def _check_head(self) -> None:
        """Raise EvaluationError if the head of the cluster has been away for HEAD_SECONDS."""
        now = time.monotonic()
        if not self._head or now - self._checked < CHECK_SECONDS:
            return
        self._checked = now
        try:
            _check_reachable(self._head)
            self._answered = now
        except OSError as error:
            if now - self._answered < HEAD_SECONDS:
                return
            self._lost = True
            raise EvaluationError(f"The head of the Ray cluster at {self._head} is gone: {error}. {_KEPT}") from error

    def _mention_waiting(self) -> None:
        if self._patient_until is None or time.monotonic() < self._patient_until:
            return
        self._patient_until = None
        if not any(worker.ready for worker in self._workers):
            log.warning(
                "No worker on the Ray cluster is ready yet, each needs %d GPUs and %d CPUs; `ray status` tells who "
                "holds them. Waiting. If the workers have them, does what makes the model hang?",
                self._slot.gpus, self._slot.cpus,
            )  # fmt: skip


class _RemoteWorker:
    """The actor."""

    def __init__(self) -> None:
        self._evaluator: Evaluator | None = None

    def prepare(self, packed: bytes, slot: Slot, fallback: bool) -> Message:
        torch.set_num_threads(slot.threads)
        devices = [torch.device("cuda", 0)] if slot.gpus and torch.cuda.is_available() else []
        if fallback or not devices:
            devices.append(torch.device("cpu"))
        self._evaluator, message = prepared(lambda: Evaluator(pickle.loads(packed), devices))
        return message

    def evaluate(self, payload: bytes) -> Message:
        assert self._evaluator is not None
        return evaluated(self._evaluator, pickle.loads(payload))


_remote_worker = ray.remote(_RemoteWorker)


def slots(
    nodes: Iterable[Mapping[str, Any]], *, workers: int | None = None, most: int | None = None, alone: bool = False
) -> tuple[int, Slot]:
    """How many workers a cluster gets, and what each asks for.

    Args:
        nodes: As `ray.nodes` lists them.
        workers: The number wanted; None for one per GPU, or per CPU of a cluster without GPUs.
        most: The largest number of use.
        alone: Whether nobody else uses the cluster, so that few workers may have several threads each.
    """
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    gpus, cpus = (sum(int(node.get(kind, 0)) for node in resources) for kind in ("GPU", "CPU"))
    count = workers or gpus or cpus
    if count == 0:
        raise EvaluationError(f"The Ray cluster offers neither GPUs nor CPUs ({len(resources)} nodes).")
    count = min(count, most or count)
    if gpus:
        return count, Slot(gpus=1, cpus=0, threads=max(1, cpus // gpus))
    return count, Slot(gpus=0, cpus=1, threads=max(1, usable_cores() // count) if alone else 1)


def connect(address: str, workers: int | None = None) -> bool:
    """Connect this program to ``address`` (see `RayCluster`), or leave it connected as it is.

    Returns:
        Whether a local Ray was started, with a CPU slot per core, or per worker if those are more.
    """
    if ray.is_initialized():
        present = ray.get_runtime_context().gcs_address
        if address != "ray" and not address.startswith("ray://") and address != present:
            raise InvalidArgumentError(
                f"executor={address!r}: this program is connected to the Ray cluster at {present} already; give "
                "executor='ray' to use it, or call ray.shutdown() first."
            )
        return False
    quiet = {"log_to_driver": False, "logging_level": logging.WARNING}
    named = os.environ.get("RAY_ADDRESS", "") if address == "ray" else address
    if named in ("", "local"):
        local = {"num_cpus": max(workers or 1, usable_cores()), "include_dashboard": False}
        try:
            try:
                ray.init(**local, **quiet)
            except ValueError:  # `ray start` was called on this machine: its resources are what they are
                ray.init(**quiet)
                return False
        except (OSError, RuntimeError, ValueError, RayError) as error:
            raise EvaluationError(f"executor='ray': a local Ray cannot be started: {error}") from error
        return True
    try:
        _check_reachable(named)
        ray.init(address=named, **quiet)
    except (OSError, RuntimeError, ValueError, RayError) as error:
        origin = f"executor={address!r}" if named == address else f"executor='ray' with RAY_ADDRESS={named}"
        raise InvalidArgumentError(
            f"{origin}: the Ray cluster at {named} cannot be reached: {error}. Does it run, and is this the address "
            "that `ray start` has shown (host:6379), or that of its client server (ray://host:10001)? A cluster that "
            "authenticates by token wants the same RAY_AUTH_MODE and token here."
        ) from error
    return False


def _check_reachable(address: str) -> None:
    """Raise OSError where nobody listens; Ray itself would try for a minute."""
    match = re.fullmatch(r"(?:ray://)?\[?([^\s/\]]+)\]?:(\d+)", address)
    if match:
        socket.create_connection((match[1], int(match[2])), REACH_SECONDS).close()


def _receive(reply: Any) -> Message:
    try:
        message: Message = ray.get(reply)
    except RayError as error:
        return Died(_how(error))
    return message


def _how(error: RayError) -> str:
    """The end of a worker in a few words; Ray gives paragraphs."""
    text = re.sub(r"\x1b\[\d+m", "", str(error)).strip()
    detail = re.search(r"Worker exit detail: (.+?)(?: Some common causes|$)", text, re.MULTILINE)
    return detail[1].rstrip(".") if detail else text.splitlines()[-1].strip()
