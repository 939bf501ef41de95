"""The search space of a supernet as a table a person reads, with the reachable MACs."""

from __future__ import annotations

from io import StringIO
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from channelwise.methods.ofa.choices import SearchSpace

_WIDTH = 140


def space_table(space: SearchSpace) -> str:
    """One row per choice, candidates from small to large, and why some have only one."""
    low, high = float(space.macs(space.minimum)), float(space.macs(space.maximum))
    console = Console(file=StringIO(), width=_WIDTH)
    console.print(
        f"{len(space.free)} of {len(space.choices)} choices are free; subnets have {low / 1e6:,.2f} to "
        f"{high / 1e6:,.2f} M MACs ({low / high:.1%} to 100 %) and {space.params(space.minimum) / 1e6:,.3f} to "
        f"{space.params(space.maximum) / 1e6:,.3f} M parameters"
    )
    table = Table("choice", "of", "candidates", "why fixed")
    for choice in space.choices:
        unit = "channels" if choice.kind == "width" else "kernel"
        more = f" and {len(choice.modules) - 3} more" if len(choice.modules) > 3 else ""
        table.add_row(unit, ", ".join(choice.modules[:3]) + more, ", ".join(map(str, choice.candidates)), choice.fixed)
    console.print(table)
    output = console.file
    assert isinstance(output, StringIO)
    return output.getvalue().rstrip()
