"""The part of docs/coverage.md that shows other tools beside channelwise."""

from __future__ import annotations

from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from typing import Any

from coverage_tools import PACKAGES, TOOLS

INTRODUCTION = """\
Each tool prunes the same model, with the same random weights, to half of the channels of every layer it can prune,
used as its documentation shows and without settings for single models: channelwise with `select(sparsity=0.5)`;
torch-pruning with its `BasePruner`, `GroupMagnitudeImportance(p=2)`, `pruning_ratio=0.5`, and the layers that make the
outputs ignored; ModelOpt with FastNAS, widths of 0.5 and 1 for every layer, the smallest network exported. Some
projects replace modules of a model, or give a tool a table of its heads, before it is pruned; here every model
is taken as it is, by every tool. *Runs*: the model became smaller, runs, and returns outputs of the same shapes.
*Exact*: its outputs equal those of the original with the removed values set to zero, in float64. Where they do not and
the model averages or normalises over channels (layer norm, for example), zeroing need not be the same as removing:
*n/a*. Where nothing of the kind is in the model: *differs*. Times, of the processor, are those of everything from the
model to the pruned model. A detector is given to every tool as a model that returns what its heads
say. Every tool has 10 GiB of memory, and the time that its cell names where it needs more.""".splitlines()


def compared(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Lines of the page; none if no row has been compared."""
    mine = {spec: row["tools"] for spec, row in sorted(rows.items()) if row.get("tools")}
    if not mine:
        return []
    lines = ["", "## Beside other tools", "", *INTRODUCTION, ""]
    lines += ["| tool | models | run | exact | n/a | differ | fail | MACs left | seconds |", "|---|" + "--:|" * 8]
    common = [tools for tools in mine.values() if all(_runs(tools.get(tool)) for tool in TOOLS)]
    for tool in TOOLS:
        results = [tools[tool] for tools in mine.values() if tool in tools]
        verdicts = Counter(verdict(result) for result in results)
        run = len(results) - verdicts["fails"]
        left = [tools[tool]["macs_left"] for tools in common]
        seconds = [tools[tool]["seconds"] for tools in common]
        medians = f"{median(left):.1%} | {median(seconds):.2f}" if common else "| "
        lines.append(
            f"| {_titled(tool)} | {len(results)} | {run} | {verdicts['exact']} | {verdicts['n/a']} "
            f"| {verdicts['differs']} | {verdicts['fails']} | {medians} |"
        )
    lines += ["", f"MACs left and seconds are medians over the {len(common)} models that every tool prunes."]
    lines += _failures(mine)
    lines += ["", "| model | " + " | ".join(TOOLS) + " |", "|---|" + "---|" * len(TOOLS)]
    for spec, tools in mine.items():
        cells = [cell(tools[tool]) if tool in tools else "" for tool in TOOLS]
        lines.append(f"| {spec} | " + " | ".join(cells) + " |")
    return lines


def verdict(result: dict[str, Any]) -> str:
    """One of "exact", "n/a", "differs" and "fails"."""
    return {"yes": "exact", "no": "differs", "n/a": "n/a"}[result["exact"]] if _runs(result) else "fails"


def cell(result: dict[str, Any]) -> str:
    """MACs left, verdict and seconds, or where it failed."""
    if not _runs(result):
        return f"fails: {_first_line(result)[:60]}"
    return f"{result['macs_left']:.1%}, {verdict(result)}, {result['seconds']:.2f} s"


def _runs(result: dict[str, Any] | None) -> bool:
    return result is not None and not result["error"] and "exact" in result


def _first_line(result: dict[str, Any]) -> str:
    return " ".join(result["error"].split("\n")[0].split()).replace("|", "\\|")


def _titled(tool: str) -> str:
    try:
        return f"{tool} {version(PACKAGES[tool])}"
    except PackageNotFoundError:
        return tool


def _failures(mine: dict[str, dict[str, Any]]) -> list[str]:
    """The kinds of failures of each tool, most frequent first."""
    lines = ["", "| tool | fails with | models | such as |", "|---|---|--:|---|"]
    for tool in TOOLS:
        kinds: dict[str, list[str]] = {}
        for spec, tools in mine.items():
            if tool in tools and not _runs(tools[tool]):
                kinds.setdefault(tools[tool]["error"].partition(":")[0], []).append(spec)
        for kind, specs in sorted(kinds.items(), key=lambda item: -len(item[1])):
            example = _first_line(mine[specs[0]][tool]).partition(": ")[2][:120]
            lines.append(f"| {tool} | {kind} | {len(specs)} | {specs[0]}: {example} |")
    return lines if len(lines) > 3 else []
