"""Choices as a table that people read."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO

from rich.console import Console
from rich.table import Table

from channelwise.methods.ofa.choices import Choice

_WIDTH = 140


def choices_table(heading: str, choices: Sequence[Choice]) -> str:
    """One row per choice, candidates from small to large, and why some have only one."""
    table = Table("choice", "of", "candidates", "why fixed")
    for choice in choices:
        unit = "channels" if choice.kind == "width" else "kernel"
        more = f" and {len(choice.modules) - 3} more" if len(choice.modules) > 3 else ""
        table.add_row(unit, ", ".join(choice.modules[:3]) + more, ", ".join(map(str, choice.candidates)), choice.fixed)
    text = StringIO()
    console = Console(file=text, width=_WIDTH)
    console.print(heading)
    console.print(table)
    return text.getvalue().rstrip()
