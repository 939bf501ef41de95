"""Progress of long work with the time left: a bar on a terminal, silent elsewhere or when asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Advance = Callable[[str], None]


@contextmanager
def progress(title: str, total: int, *, done: int = 0, quiet: bool = False) -> Iterator[Advance]:
    """Show ``title`` and a bar while the block runs; call the yielded function with a status after every step.

    Drawn on stderr and left out when that is not a terminal. What the steps themselves print stays untouched.

    Args:
        title: What is being done, e.g. "Analysing ResNet".
        total: Number of steps, those of earlier runs included.
        done: Steps finished by earlier runs; the time left is estimated from this run's steps alone.
        quiet: Draw nothing even on a terminal.
    """
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
        console=console,
        disable=quiet or not console.is_terminal,
        redirect_stdout=False,
        redirect_stderr=False,
        speed_estimate_period=600,
    )
    with bar:
        task = bar.add_task(title, total=total, completed=done, status="")

        def advance(status: str) -> None:
            bar.update(task, advance=1, status=status)

        yield advance
