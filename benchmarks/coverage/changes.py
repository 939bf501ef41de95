"""Models in which a trace finds something else than it did before, as a short table, and how long traces take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from benchmarks.measuring import head, row

from .journal import Row, light, macs_left, quick

COLUMNS: dict[str, Callable[[Row], str]] = {
    "prunable outputs of convolutions": lambda r: f"{r['conv_prunable']:,}",
    "outputs that stay": lambda r: f"{sum(r['causes'].values()):,}",
    "MACs left": lambda r: f"{macs_left(r):.2%}",
    "MACs": lambda r: f"{r['macs']:.6g}",
}


def changes(before: dict[str, Row], now: dict[str, Row]) -> list[str]:
    """A line for every model that lost or gained channels, costs something else, fails, or where the tripwire fired.

    Models that lost channels come first. Only models with a row in both are looked at.
    """
    pairs = [(before[spec], r) for spec, r in sorted(now.items()) if spec in before and not before[spec]["error"]]
    traced = [(old, new) for old, new in pairs if not new["error"]]
    table: list[tuple[float, str]] = []
    for old, new in pairs:
        if new["error"]:
            table.append((float("-inf"), row(new["spec"], "fails", *[""] * len(COLUMNS), new["error"][:100])))
            continue
        was, became = ([show(r) for show in COLUMNS.values()] for r in (old, new))
        fired = new["tripwires"]
        if was == became and not fired:
            continue
        gain = _gain(old, new)
        verdict = "lost" if gain < 0 else "gained" if gain > 0 else "as before"
        cells = [a if a == b else f"{a} -> {b}" for a, b in zip(was, became, strict=True)]
        table.append((gain, row(new["spec"], verdict, *cells, f"tripwire {len(fired)} x: {fired[0]}" if fired else "")))
    lines = head("model", "channels", *(f"{name}:" for name in COLUMNS), "note")
    lines = lines + [line for _, line in sorted(table)] if table else ["no model lost or gained channels"]
    if traced:
        lines.append("")
        lines += head("traces", "before:", "now:")
        figures: dict[str, Callable[[Sequence[Row]], object]] = {
            f"quick, of {len(traced)}": lambda rows: sum(map(quick, rows)),
            f"light, of {len(traced)}": lambda rows: sum(map(light, rows)),
            "forward passes, median": lambda rows: f"{median(r['trace_s'] / r['forward_s'] for r in rows):.2f}",
            "seconds, all together": lambda rows: f"{sum(r['trace_s'] for r in rows):.1f}",
            "tripwires": lambda rows: sum(len(r.get("tripwires", ())) for r in rows),
        }
        lines += [row(what, *map(count, zip(*traced, strict=True))) for what, count in figures.items()]
    return lines


def _gain(old: Row, new: Row) -> float:
    """Channels gained, or lost if negative, of convolutions or of all layers; MACs where both are as before."""
    convolutions = new["conv_prunable"] - old["conv_prunable"]
    layers = sum(old["causes"].values()) - sum(new["causes"].values())
    return min(convolutions, layers, 0) or max(convolutions, layers) or macs_left(old) - macs_left(new)
