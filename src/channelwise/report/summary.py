"""The table printed after pruning: MACs and parameters before and after."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Summary:
    """Sizes of a model before and after pruning. MACs are for one sample of the traced inputs.

    ``score`` is that of the search's ``candidate`` that the model was made from, if it was found by a search.
    """

    model: str
    macs_before: float
    macs_after: float
    params_before: int
    params_after: int
    score: float | None = None
    candidate: int | None = None

    @property
    def removal_ratio(self) -> float:
        """Fraction of MACs removed."""
        return 1 - self.macs_after / self.macs_before if self.macs_before else 0.0

    def figures(self) -> dict[str, Any]:
        """The model and its costs, as results files have them."""
        return {name: value for name, value in asdict(self).items() if name not in ("score", "candidate")}

    def table(self) -> Table:
        """The summary as a rich table."""
        table = Table(title=f"{self.model} pruned")
        table.add_column("")
        for heading in ("Baseline", "Pruned", "Kept"):
            table.add_column(heading, justify="right")
        for name, before, after in (
            ("MACs", self.macs_before, self.macs_after),
            ("Parameters", self.params_before, self.params_after),
        ):
            share = f"{100 * after / before:.1f} %" if before else "-"
            table.add_row(name, quantity(before), quantity(after), share)
        if self.score is not None:
            table.add_row(f"Score in the search (candidate {self.candidate})", "", f"{self.score:.6g}", "")
        return table

    def __str__(self) -> str:
        """The table as plain text, without colours."""
        console = Console(file=io.StringIO(), width=100, color_system=None, force_terminal=False)
        with console.capture() as capture:
            console.print(self.table())
        return capture.get()


def quantity(value: float) -> str:
    """A count with its SI prefix: 4.089 G, 25.56 M, 730."""
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.4g} {unit}"
    return f"{value:.4g}"
