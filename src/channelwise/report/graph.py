"""A channel graph as tables a person reads: the groups, what is frozen and why, and what can be done about it."""

from __future__ import annotations

from io import StringIO

from rich.console import Console
from rich.table import Table

from channelwise import cost
from channelwise.report.inspection import ADVICE, frozen_outputs, group_layers, group_remarks
from channelwise.structure import Structure

_WIDTH = 140


def graph_table(structure: Structure) -> str:
    """Groups with their layers, then frozen output channels counted by reason, advice, notes."""
    full = structure.full()
    console = Console(file=StringIO(), width=_WIDTH)
    console.print(
        f"{len(structure.groups)} channel groups, {cost.macs(structure, full) / 1e6:,.1f} M MACs, "
        f"{cost.params(structure, full) / 1e6:,.2f} M parameters"
    )
    groups = Table("group", "channels", "produced by", "read by", "notes", title="can be pruned", title_justify="left")
    for group in structure.groups:
        produced, read = (_few(group_layers(group, role), 3) for role in ("output", "input"))
        groups.add_row(group.name, str(group.size), produced, read, "; ".join(group_remarks(group)))
    console.print(groups)
    rows = frozen_outputs(structure)
    frozen = Table("channels", "of", "must stay because", title="must stay", title_justify="left")
    for row in rows:
        frozen.add_row(str(row.channels), _few(list(row.layers), 4), row.reason)
    if rows:
        console.print(frozen)
    for cause in dict.fromkeys(row.cause for row in rows):
        channels = sum(row.channels for row in rows if row.cause == cause)
        console.print(f"{cause.value} ({channels:,} channels): {ADVICE[cause]}", soft_wrap=True)
    for note in structure.notes:
        console.print(f"note: {note}")
    output = console.file
    assert isinstance(output, StringIO)
    return output.getvalue().rstrip()


def _few(names: list[str], most: int) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
