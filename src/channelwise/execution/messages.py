"""What a worker says, as plain data that travels between processes, and the exceptions among it."""

from __future__ import annotations

import logging
import pickle
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cloudpickle

from channelwise.execution.evaluator import Evaluator

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ready:
    """The worker has prepared the job."""


@dataclass(frozen=True)
class Broken:
    """The worker cannot prepare the job."""

    why: str


@dataclass(frozen=True)
class Scored:
    """The score of the payload sent last."""

    score: float
    seconds: float


@dataclass(frozen=True)
class Raised:
    """The payload sent last made the job raise: the exception, if it can travel, what it is, and its traceback."""

    pickled: bytes | None
    name: str
    text: str
    traceback: str
    seconds: float


@dataclass(frozen=True)
class Died:
    """A worker has ended, and how."""

    how: str


Message = Ready | Broken | Scored | Raised | Died


def prepared(make: Callable[[], Evaluator]) -> tuple[Evaluator | None, Ready | Broken]:
    """In a worker: make the evaluator and prepare its job."""
    try:
        evaluator = make()
        evaluator.prepare()
    except Exception as error:
        return None, Broken(f"{type(error).__name__}: {error}")
    return evaluator, Ready()


def evaluated(evaluator: Evaluator, payload: Any) -> Scored | Raised:
    """In a worker: evaluate a payload."""
    start = time.perf_counter()
    try:
        score = evaluator(payload)
    except Exception as error:
        seconds = time.perf_counter() - start
        return Raised(_pickled(error), type(error).__name__, str(error), traceback.format_exc(), seconds)
    return Scored(score, time.perf_counter() - start)


def exception(message: Raised) -> BaseException:
    """What the worker raised, with the worker's traceback as a note."""
    # The user's exception class may not survive the way back; then one of the same name has to do.
    error: BaseException = type(message.name, (RuntimeError,), {})(message.text)
    if message.pickled is not None:
        try:
            error = pickle.loads(message.pickled)
        except Exception as problem:
            log.debug("Cannot rebuild the worker's exception: %s", problem)
    if sys.version_info >= (3, 11):
        error.add_note(f"In the worker process:\n{message.traceback}")
    else:
        log.error("In the worker process:\n%s", message.traceback)
    return error


def _pickled(error: Exception) -> bytes | None:
    try:
        # As the job travels: then a class that came with it is again the user's own.
        data = cloudpickle.dumps(error)
        pickle.loads(data)
    except Exception:  # an exception class of the user's that cannot travel
        return None
    return data
