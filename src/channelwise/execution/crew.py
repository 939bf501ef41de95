"""The order of things that all executors with workers share: who gets which task, when, and what if one dies."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from channelwise.errors import EvaluationError
from channelwise.execution import Result, Task, pace
from channelwise.execution.evaluator import failed
from channelwise.execution.messages import Broken, Died, Message, Raised, Ready, Scored, exception
from channelwise.execution.pace import Pace

log = logging.getLogger(__name__)

MAX_DEATHS = 3
"""A task on which so many workers have died is given up."""
WAKE_SECONDS = 1.0
"""How often those that take too long are looked for."""


@dataclass
class Worker:
    """What a crew knows of a worker. A stale one is busy for a run that its caller has left.

    ``since``: when it got its task, or was started, by `time.monotonic`. ``slow``: that has been said to take long.
    """

    task: Task | None = None
    ready: bool = False
    stale: bool = False
    since: float = field(default_factory=time.monotonic)
    slow: bool = False


W = TypeVar("W", bound=Worker)


class Crew(ABC, Generic[W]):
    """Workers that each hold the job and take one task at a time; one that dies is replaced and its task repeated.

    ``timeout``: seconds after which the worker of a task is ended and replaced, and the task has failed. Also one that
    is not ready after that time and `pace.START_SECONDS`.
    """

    max_failed_starts = 1
    """So many workers in a row that die before they are ready end the run; MAX_DEATHS once any was ready."""
    starts_at_once = True
    """Whether a worker that is not ready does something, and does not wait for a place."""

    def __init__(self, timeout: float | None = None) -> None:
        self._workers: list[W] = []
        self._timeout = timeout
        self._pace = Pace()
        self._failed_starts = 0
        self._proven = False

    @property
    def capacity(self) -> int:
        return len(self._workers)

    def run(self, tasks: Iterable[Task]) -> Iterator[Result]:
        source = iter(tasks)
        again: deque[Task] = deque()
        deaths: Counter[int] = Counter()
        for worker in self._workers:
            worker.stale = worker.task is not None
        more = True
        while more or again or any(worker.task is not None and not worker.stale for worker in self._workers):
            free = next((worker for worker in self._workers if worker.ready and worker.task is None), None)
            startable = free is not None and (more or bool(again))
            messages = self._messages(0.0 if startable else WAKE_SECONDS)
            # All are settled before the caller gets the first: it may not come back for the second.
            results = [self._settle(index, message, again, deaths) for index, message in messages]
            results += self._overdue()
            yield from (result for result in results if result is not None)
            if results or free is None or not startable:
                continue
            task = again.popleft() if again else next(source, None)
            if task is None:
                more = False
            else:
                free.task, free.since, free.slow = task, time.monotonic(), False
                self._send(free, task.payload)

    def _overdue(self) -> list[Result | None]:
        """End the workers whose tasks, or whose start, have taken longer than the timeout; say which are slow."""
        found: list[Result | None] = []
        limit = self._pace.limit
        for index, worker in enumerate(self._workers):
            task, seconds = worker.task, time.monotonic() - worker.since
            if task is None:
                if not worker.ready and self.starts_at_once and seconds > pace.START_SECONDS:
                    self._late(index, seconds)
                continue
            if self._timeout is not None and seconds > self._timeout:
                who = self._who(worker)
                self._workers[index] = self._replacement(worker)
                log.warning("Evaluating %s took longer than %g s: %s is replaced.", task.label, self._timeout, who)
                error = EvaluationError(
                    f"Evaluating {task.label}: it took longer than timeout={self._timeout:g} seconds; {who} was ended."
                )
                found.append(None if worker.stale else Result(task, None, seconds, error))
            elif limit is not None and seconds > limit and not worker.slow:
                worker.slow = True
                log.warning("%s%s", self._pace.slow(task.label, seconds, f"in {self._who(worker)}"), self._advice)
        return found

    def _late(self, index: int, seconds: float) -> None:
        """Say that a worker has not become ready; end it after the timeout."""
        worker = self._workers[index]
        if self._timeout is not None and seconds > self._timeout:
            log.warning("%s was not ready after %.0f s and is ended.", self._who(worker), seconds)
            self._bury(index, Died(f"it was ended after {seconds:.0f} s"))
        elif not worker.slow:
            worker.slow = True
            log.warning("%s%s", pace.not_ready(seconds, self._who(worker)), self._advice)

    @property
    def _advice(self) -> str:
        return " A timeout= would end it." if self._timeout is None else ""

    def _settle(self, index: int, message: Message, again: deque[Task], deaths: Counter[int]) -> Result | None:
        worker = self._workers[index]
        if isinstance(message, Ready):
            worker.ready = self._proven = True
            self._failed_starts = 0
            return None
        if isinstance(message, Broken):
            raise EvaluationError(f"A worker could not start on {self._place(worker)}: {message.why}")
        task, stale = worker.task, worker.stale
        worker.task, worker.stale = None, False
        if isinstance(message, Died):
            self._bury(index, message)
        if task is None or stale:
            return None
        if isinstance(message, Raised):
            return Result(task, None, message.seconds, failed(task, exception(message)))
        if isinstance(message, Scored):
            self._pace.add(message.seconds)
            return Result(task, message.score, message.seconds)
        assert isinstance(message, Died)
        deaths[id(task)] += 1
        if deaths[id(task)] < MAX_DEATHS:
            log.warning("A worker died (%s) on %s; starting another and repeating.", message.how, task.label)
            again.append(task)
            return None
        error = EvaluationError(
            f"Evaluating {task.label}: {deaths[id(task)]} worker processes died on it, one after the other "
            f"(the last: {message.how}). Is there enough memory? Fewer workers need less."
        )
        return Result(task, None, 0.0, error)

    def _bury(self, index: int, message: Died) -> None:
        """Replace a worker that has died."""
        worker = self._workers[index]
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts >= (MAX_DEATHS if self._proven else self.max_failed_starts):
                raise EvaluationError(self._never_ready(message.how))
        self._workers[index] = self._replacement(worker)

    @abstractmethod
    def _messages(self, seconds: float) -> list[tuple[int, Message]]:
        """New messages of the workers, with their indices; waits for the first, no longer than that."""

    @abstractmethod
    def _send(self, worker: W, payload: Any) -> None:
        """Give a worker its next payload. One that has died is not an error here: it will be found dead."""

    @abstractmethod
    def _replacement(self, worker: W) -> W:
        """A new worker in the place of one that has died, or has to."""

    @abstractmethod
    def _place(self, worker: W) -> str:
        """Where a worker is, for messages."""

    def _who(self, worker: W) -> str:
        """Which worker, for messages."""
        return f"a worker on {self._place(worker)}"

    @abstractmethod
    def _never_ready(self, how: str) -> str:
        """The message when workers die before they are ready."""

    @abstractmethod
    def close(self) -> None:
        """End all workers."""
