"""Where evaluations run: in this process, in local worker processes, or on a Ray cluster."""

from __future__ import annotations

import importlib.util
import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from channelwise.errors import InvalidArgumentError
from channelwise.execution import Executor, Job
from channelwise.execution.devices import check_timeout, check_workers, choose_devices, device_indices
from channelwise.execution.inprocess import InProcess
from channelwise.execution.workers import WorkerPool

log = logging.getLogger(__name__)

ADDRESS = re.compile(r"(ray://)?(\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):\d+")


@dataclass(frozen=True)
class Place:
    """Where evaluations will run, checked but not started.

    ``devices`` are those of this machine, a worker each in turn, or to be tried in turn in this process.
    """

    executor: str | None
    workers: int | None
    device: torch.device
    devices: Sequence[torch.device]
    timeout: float | None = None

    def start(self, job: Job, most: int | None = None) -> Executor:
        """The executor for ``job``; the caller closes it. No more workers than ``most``, the number of tasks.

        Raises:
            InvalidArgumentError: the cluster is not reachable, or the job cannot be sent.
            EvaluationError: workers do not start.
        """
        if self.executor not in (None, "local"):
            from channelwise.execution.ray import RayCluster  # needs Ray, and takes a second

            return RayCluster(
                job, device=self.device, timeout=self.timeout, address=self.executor, workers=self.workers, most=most
            )
        count = max(1, min(self.workers or 1, most if most is not None else sys.maxsize))
        if count == 1 and self.executor is None:
            if self.timeout is not None:
                log.warning(
                    "timeout=%g has no effect: evaluations run in this process, where nothing can end them. Give "
                    "workers=2 or executor='local'.", self.timeout
                )  # fmt: skip
            return InProcess(job, self.devices)
        return WorkerPool(job, [self.devices[i % len(self.devices)] for i in range(count)], self.timeout)


@dataclass(frozen=True)
class Where:
    """Where evaluations run; by default in this process, where the model is or on the current CUDA device.

    Args:
        gpus: Indices of the CUDA devices to evaluate on, in parallel if there are several. Without CUDA evaluations
            run where the model is. On a Ray cluster, which places workers itself, several indices only say how many
            workers there are.
        workers: Number of processes; by default one per entry of ``gpus``, none without, on Ray one per GPU or CPU.
        executor: "ray" evaluates on a Ray cluster (the one that ``RAY_ADDRESS`` or `ray start` on this machine names,
            or a local one started for the purpose), "ray://host:port" or "host:port" on that one. "local": worker
            processes even if it is one. None: here, or in worker processes if there are several.
        timeout: Seconds that one evaluation may take. The worker of one that takes longer is ended and replaced, and
            its candidate has failed. None: as long as it takes; one that takes ten times the median is said, though.
            In this process nothing can end an evaluation.
    """

    gpus: Sequence[int | str] | None = None
    workers: int | None = None
    executor: str | None = None
    timeout: float | None = None

    def place(self, device: torch.device) -> Place:
        """The place for evaluations of a model that is on ``device``.

        Raises:
            InvalidArgumentError: an argument is wrong, there is no such device, or Ray is not installed.
        """
        executor, workers = _check_executor(self.executor), check_workers(self.workers)
        timeout = check_timeout(self.timeout)
        if executor not in (None, "local"):
            indices = [] if self.gpus is None else device_indices(self.gpus)
            return Place(executor, workers or (len(indices) if len(indices) > 1 else None), device, [], timeout)
        devices = choose_devices(self.gpus, device)
        if workers is None:
            workers = len(devices) if self.gpus is not None else 1
        elif self.gpus is None:
            devices = [device]
        return Place(executor, workers, device, devices, timeout)


def _check_executor(executor: object) -> str | None:
    """``executor`` if it can be used here as far as is known without starting it."""
    if executor is None or executor == "local":
        return executor
    if not isinstance(executor, str) or not (executor == "ray" or ADDRESS.fullmatch(executor)):
        raise InvalidArgumentError(
            f"executor={executor!r}: must be None, 'local', 'ray', or the address of a Ray cluster such as "
            "'ray://head:10001' or 'head:6379'."
        )
    if importlib.util.find_spec("ray") is None:
        raise InvalidArgumentError(
            f"executor={executor!r} needs Ray, which is not installed: pip install 'channelwise[ray]'"
        )
    return executor
