"""A channel graph as tables a person reads: the groups, and what is frozen and why."""

from __future__ import annotations

from collections import defaultdict
from io import StringIO

from rich.console import Console
from rich.table import Table

from channelwise import cost
from channelwise.graph.structure import Group, Structure, owner

_WIDTH = 140


def graph_table(structure: Structure) -> str:
    """Groups with their layers, then frozen output channels counted by reason, then notes."""
    full = structure.full()
    console = Console(file=StringIO(), width=_WIDTH)
    console.print(
        f"{len(structure.groups)} channel groups, {cost.macs(structure, full) / 1e6:,.1f} M MACs, "
        f"{cost.params(structure, full) / 1e6:,.2f} M parameters"
    )
    groups = Table("group", "channels", "produced by", "read by", "notes", title="can be pruned", title_justify="left")
    for group in structure.groups:
        groups.add_row(group.name, str(group.size), _names(group, "output"), _names(group, "input"), _remarks(group))
    console.print(groups)
    frozen = Table("channels", "of", "must stay because", title="must stay", title_justify="left")
    for reason, layers in _frozen_outputs(structure).items():
        names = list(layers)
        listed = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        frozen.add_row(str(sum(layers.values())), listed, reason)
    if frozen.row_count:
        console.print(frozen)
    for note in structure.notes:
        console.print(f"note: {note}")
    output = console.file
    assert isinstance(output, StringIO)
    return output.getvalue().rstrip()


def _names(group: Group, role: str) -> str:
    names = list(dict.fromkeys(owner(s.tensor) for s in group.slots if s.role == role))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _remarks(group: Group) -> str:
    remarks = []
    if group.parts is not None:
        remarks.append(f"{int(group.parts.max()) + 1} parts keep equally many")
    if not group.exact:
        remarks.append(f"slim only: {group.inexact_because}")
    return "; ".join(remarks)


def _frozen_outputs(structure: Structure) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for frozen in structure.frozen:
        if frozen.role != "output":
            continue
        name = owner(frozen.tensor)
        reason = str(frozen.reasons[0]) if frozen.reasons else "no reason recorded"
        found[reason][name] = found[reason].get(name, 0) + len(frozen.index)
    return found
