"""Where evaluations run: one small protocol, implemented in process, by local worker processes and by a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from channelwise.errors import EvaluationError


@dataclass(frozen=True)
class Task:
    """One evaluation: ``label`` is what messages call it, ``payload`` what the job is given (plain, picklable data)."""

    label: str
    payload: Any


@dataclass(frozen=True)
class Result:
    """What came of a task: its score, or the error (chained to what the user's function raised); and the seconds."""

    task: Task
    score: float | None
    seconds: float
    error: EvaluationError | None = None


class Job(Protocol):
    """What is done with every task. A process gets its own copy and prepares it once."""

    def prepare(self, device: torch.device) -> None:
        """Move what the job holds to ``device``."""

    def __call__(self, payload: Any) -> float:
        """Evaluate one payload; raise EvaluationError for anything that is not a finite number."""


class Executor(Protocol):
    """Runs a job over tasks. Results come as they finish, in any order; closing ends every process it started.

    `channelwise.execution.where.Place.start` makes one.
    """

    @property
    def capacity(self) -> int:
        """Evaluations at the same time."""

    def run(self, tasks: Iterable[Task]) -> Iterator[Result]:
        """Evaluate ``tasks``, each exactly once as far as the caller can tell.

        The next task is taken only when a worker is free and the caller has been given every result there is, so that
        an iterator can base a task on the scores so far. A task that fails gives a result with an error; the others go
        on.

        Raises:
            EvaluationError: the evaluations cannot run at all: workers do not start, or a cluster is gone.
        """

    def close(self) -> None:
        """Free processes and memory. May be called twice."""
