"""Where evaluations run: one small protocol, implemented in process and by local worker processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch


@dataclass(frozen=True)
class Task:
    """One evaluation: ``label`` is what messages call it, ``payload`` what the job is given (plain, picklable data)."""

    label: str
    payload: Any


@dataclass(frozen=True)
class Result:
    """The score of a finished task and the seconds it took."""

    task: Task
    score: float
    seconds: float


class Job(Protocol):
    """What is done with every task. A process gets its own copy and prepares it once."""

    def prepare(self, device: torch.device) -> None:
        """Move what the job holds to ``device``."""

    def __call__(self, payload: Any) -> float:
        """Evaluate one payload; raise EvaluationError for anything that is not a finite number."""


class Executor(Protocol):
    """Runs a job over tasks. Results come as they finish, in any order; closing ends every process it started."""

    def run(self, tasks: Sequence[Task]) -> Iterator[Result]:
        """Evaluate ``tasks``, each exactly once as far as the caller can tell.

        Raises:
            EvaluationError: naming the task, chained to what the user's function raised.
        """

    def close(self) -> None:
        """Free processes and memory. May be called twice."""
