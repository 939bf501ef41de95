"""Evaluations one after the other in this process."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from channelwise.errors import EvaluationError
from channelwise.execution import Job, Result, Task

log = logging.getLogger(__name__)


class InProcess:
    """Runs the job here, on the first of ``devices`` on which the first task does not fail over a device mismatch.

    A model left on the CPU may have an evaluation function that moves its batches to CUDA, or one that does not:
    only trying tells.
    """

    def __init__(self, job: Job, devices: Sequence[torch.device]) -> None:
        self._job = job
        self._devices = list(devices)
        self._prepared = False

    def run(self, tasks: Sequence[Task]) -> Iterator[Result]:
        for task in tasks:
            yield self._evaluate(task)

    def close(self) -> None:
        """Nothing to free."""

    def _evaluate(self, task: Task) -> Result:
        while True:
            device = self._devices[0]
            with on_device(device):
                if not self._prepared:
                    self._job.prepare(device)
                    self._prepared = True
                start = time.perf_counter()
                try:
                    score = self._job(task.payload)
                except Exception as error:
                    if len(self._devices) == 1 or not is_device_mismatch(error):
                        raise failed(task, error) from error
                    log.info("eval_fn does not work on %s, trying %s.", device, self._devices[1])
                    self._devices.pop(0)
                    self._prepared = False
                    continue
            del self._devices[1:]
            return Result(task, score, time.perf_counter() - start)


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Make ``device`` the current one, so that ``.cuda()`` in the user's function means this device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def is_device_mismatch(error: BaseException) -> bool:
    """Whether PyTorch complains that tensors are on different devices."""
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "same device" in text
        or "Input type (torch.cuda" in text
        or ("weight type (torch.cuda" in text and "Input type (torch." in text)
    )


def failed(task: Task, error: BaseException) -> EvaluationError:
    """The error that tells which evaluation failed and why."""
    if isinstance(error, EvaluationError):
        return EvaluationError(f"Evaluating {task.label}: {error}")
    return EvaluationError(f"Evaluating {task.label}: eval_fn raised {type(error).__name__}: {error}")
