"""Progress of long work with the time left: a bar on a terminal, elsewhere a line now and then; silent when asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Advance = Callable[[str], None]

LINE_SECONDS = 30.0
"""Where there is no terminal (nohup, the log of a cluster) there is a line no more often than this."""


@contextmanager
def progress(title: str, total: int, *, done: int = 0, quiet: bool = False) -> Iterator[Advance]:
    """Show ``title`` and a bar while the block runs; call the yielded function with a status after every step.

    Drawn on stderr. Where that is not a terminal, a plain line is written there every LINE_SECONDS. What the steps
    themselves print stays untouched.

    Args:
        title: What is being done, e.g. "Analysing ResNet".
        total: Number of steps, those of earlier runs included.
        done: Steps finished by earlier runs; the time left is estimated from this run's steps alone.
        quiet: Draw and write nothing.
    """
    console = Console(stderr=True)
    if quiet:
        yield lambda status: None
        return
    if not console.is_terminal:
        yield _Lines(title, total, done, console)
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
        console=console,
        redirect_stdout=False,
        redirect_stderr=False,
        speed_estimate_period=600,
    )
    with bar:
        task = bar.add_task(title, total=total, completed=done, status="")

        def advance(status: str) -> None:
            bar.update(task, advance=1, status=status)

        yield advance


class _Lines:
    """What is done, the status and the time left, as a line of plain text now and then."""

    def __init__(self, title: str, total: int, done: int, console: Console) -> None:
        self._title, self._total, self._before, self._console = title, total, done, console
        self._steps = 0
        self._began = self._written = time.monotonic()

    def __call__(self, status: str) -> None:
        self._steps += 1
        now = time.monotonic()
        if now - self._written < LINE_SECONDS:
            return
        self._written = now
        done = self._before + self._steps
        left = timedelta(seconds=round((now - self._began) / self._steps * max(self._total - done, 0)))
        parts = [f"{done} of {self._total}", *([status] if status else []), f"about {left} left"]
        self._console.print(f"{self._title}: {', '.join(parts)}", markup=False, highlight=False, soft_wrap=True)
