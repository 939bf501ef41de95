"""Evaluations one after the other in this process."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch

from channelwise.errors import EvaluationError
from channelwise.execution import Job, Result, Task
from channelwise.execution.evaluator import Evaluator, failed
from channelwise.execution.pace import Pace

log = logging.getLogger(__name__)


class InProcess:
    """Runs the job here, on the first of ``devices`` that the user's function works on."""

    def __init__(self, job: Job, devices: Sequence[torch.device]) -> None:
        self._evaluator = Evaluator(job, devices)
        self._pace = Pace()

    @property
    def capacity(self) -> int:
        return 1

    def run(self, tasks: Iterable[Task]) -> Iterator[Result]:
        try:
            self._evaluator.prepare()
        except Exception as error:
            where = self._evaluator.device
            raise EvaluationError(f"Evaluations cannot start on {where}: {type(error).__name__}: {error}") from error
        for task in tasks:
            yield self._evaluate(task)

    def close(self) -> None:
        """Nothing to free."""

    def _evaluate(self, task: Task) -> Result:
        start = time.perf_counter()
        try:
            with self._watched(task.label):
                score = self._evaluator(task.payload)
        except Exception as error:
            return Result(task, None, time.perf_counter() - start, failed(task, error))
        seconds = time.perf_counter() - start
        self._pace.add(seconds)
        return Result(task, score, seconds)

    @contextmanager
    def _watched(self, label: str) -> Iterator[None]:
        """Say it when the block takes long. Nothing can end it from here."""
        limit = self._pace.limit
        if limit is None:
            yield
            return
        timer = threading.Timer(limit, lambda: log.warning("%s", self._pace.slow(label, limit, "in this process")))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
