"""Models in worker processes with a limit of time and memory each; their rows are written as they come."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import TimeoutError, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pebble import ProcessExpired, ProcessPool

from .check import prepare_worker
from .journal import Row, append, commit


@dataclass(frozen=True)
class Limits:
    """How many worker processes there are, and what one may use for a model."""

    workers: int
    seconds: float
    gigabytes: float


@dataclass(frozen=True)
class Job:
    """A function that makes the row of a model, or what is known of it under ``tool``."""

    spec: str
    function: Callable[..., Row]
    arguments: tuple[Any, ...]
    tool: str = ""

    def row(self, found: Row) -> Row:
        """The row for the journal."""
        return {"spec": self.spec, **({"tools": {self.tool: found}} if self.tool else found)}


def sweep(
    jobs: Sequence[Job],
    journal: Path,
    limits: Limits,
    prepare: Callable[[float], None] = prepare_worker,
    tasks: int = 25,
) -> None:
    """Run all jobs and append their rows; a model that crashes, hangs or takes too much is a row, too.

    A worker is replaced after so many ``tasks``, and when it is killed.
    """
    # Asked for now: a worker that is forked while git runs would keep git's pipe open, and it would be waited for.
    code = commit()
    pool = ProcessPool(limits.workers, max_tasks=tasks, initializer=prepare, initargs=[limits.gigabytes])
    try:
        futures = {pool.schedule(job.function, job.arguments, timeout=limits.seconds): job for job in jobs}
        start = time.perf_counter()
        for number, future in enumerate(as_completed(futures), start=1):
            job = futures[future]
            found = {**_result(future, limits), "commit": code}
            append(journal, job.row(found))
            verdict = found["error"].splitlines()[0][:100] if found["error"] else f"{found.get('seconds', 0):.1f} s"
            name = f"{job.spec} {job.tool}".strip()
            print(f"{number}/{len(jobs)} {time.perf_counter() - start:.0f} s {name}: {verdict}", flush=True)
        pool.close()
    finally:
        pool.stop()
        pool.join()


def _result(future: Any, limits: Limits) -> Row:
    """What a worker returns, or the ``error`` that says why it returned nothing."""
    try:
        found: Row = future.result()
        return found
    except TimeoutError:
        return {"stage": "run", "error": f"TimeoutError: more than {limits.seconds:g} s"}
    except ProcessExpired as error:
        return {"stage": "run", "error": f"ProcessExpired: {error}"}
    except MemoryError:
        return {"stage": "run", "error": f"MemoryError: more than {limits.gigabytes:g} GiB"}
