"""The job in the process that does it: placed on a device, then called with payload after payload."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from channelwise.errors import EvaluationError, with_hint
from channelwise.execution import Job, Task
from channelwise.inputs.devices import device_hint, is_device_mismatch

log = logging.getLogger(__name__)


class Evaluator:
    """Calls the job on the first of ``devices`` on which the first payload does not fail over a device mismatch.

    A model left on the CPU may have an evaluation function that moves its batches to CUDA, or one that does not:
    only trying tells.
    """

    def __init__(self, job: Job, devices: Sequence[torch.device]) -> None:
        self._job = job
        self._devices = list(devices)
        self._prepared = False

    @property
    def device(self) -> torch.device:
        """Where the job is, or will be."""
        return self._devices[0]

    def prepare(self) -> None:
        """Move the job to its device, once."""
        if not self._prepared:
            with on_device(self.device):
                self._job.prepare(self.device)
            self._prepared = True

    def __call__(self, payload: Any) -> float:
        while True:
            self.prepare()
            try:
                with on_device(self.device):
                    score = self._job(payload)
            except Exception as error:
                if len(self._devices) == 1 or not is_device_mismatch(error):
                    raise
                log.info("eval_fn does not work on %s, trying %s.", self.device, self._devices[1])
                self._devices.pop(0)
                self._prepared = False
            else:
                del self._devices[1:]
                return score


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Make ``device`` the current one, so that ``.cuda()`` in the user's function means this device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def failed(task: Task, error: BaseException) -> EvaluationError:
    """The error that tells which evaluation failed and why, chained to ``error``."""
    if isinstance(error, EvaluationError):
        failure = EvaluationError(f"Evaluating {task.label}: {error}")
    else:
        text = with_hint(error, device_hint(error, "eval_fn"))
        failure = EvaluationError(f"Evaluating {task.label}: eval_fn raised {type(error).__name__}: {text}")
    failure.__cause__ = error
    return failure
