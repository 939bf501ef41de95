"""The part of docs/coverage.md that shows pruned YOLO models trained and exported by ultralytics itself."""

from __future__ import annotations

from typing import Any

INTRODUCTION = """\
Each model is built from its definition and trained for an epoch on a few images of blood cells, of 160 px; half of the
channels of every group are removed, and the pruned model is trained by ultralytics' own trainer of the task (a subclass
whose `get_model` returns it). Then: it is still the pruned model, its moving average included, with other weights and a
finite loss; `last.pt` and `best.pt` load with `YOLO(…)`, predict and validate; `fuse()` leaves its outputs as they are;
the files of `export(format="torchscript")` and `export(format="onnx")` give what it gives; and
`channelwise.load` puts it into a fresh model from the definition, with equal predictions. The dense model goes the same
way first. Numbers are the largest differences of any predicted value, relative to the largest of its kind (coordinates,
scores of a class and so on); those of `fuse()` in float64. They are judged beside what two images differ by, of which
they may be 0.2 %, and those of `fuse()` a billionth. Of v10, both heads are compared.""".splitlines()
COLUMNS = {
    "train": "trained",
    "load": "loads, validates",
    "fuse": "fuse()",
    "torchscript": "TorchScript",
    "onnx": "ONNX",
    "save": "saved, loaded",
}


def trained_and_exported(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Lines of the page; none if there are no rows."""
    if not rows:
        return []
    versions = sorted({row["version"] for row in rows.values() if "version" in row})
    passed = sum(not row["error"] for row in rows.values())
    lines = [
        "",
        "## Trained and exported by ultralytics",
        "",
        f"Written by `python benchmarks/coverage_yolo.py`, with ultralytics {', '.join(versions)}.",
        *INTRODUCTION,
        "",
        f"{passed} of {len(rows)} models pass.",
        "",
        f"| model | task | MACs left | parameters left | {' | '.join(COLUMNS.values())} |",
        "|---|---|--:|--:|" + "---|" * len(COLUMNS),
    ]
    for row in rows.values():
        left = [f"{row[key]:.1%}" if key in row else "" for key in ("macs_left", "params_left")]
        cells = [_cell(row, step) for step in COLUMNS]
        name = row["spec"].partition(":")[2]
        lines.append(f"| {name} | {row.get('task', '')} | {' | '.join([*left, *cells])} |")
    failed = [(row, text) for row in rows.values() for text in _failures(row)]
    if failed:
        lines += ["", "| model | fails at | the dense model |", "|---|---|---|"]
        lines += [f"| {row['spec'].partition(':')[2]} | {text} |" for row, text in failed]
    return lines


def _cell(row: dict[str, Any], step: str) -> str:
    result = row.get("slim", {}).get(step)
    if result is None:
        return "not reached"
    if result["error"]:
        return "fails, as the dense model does" if _dense_error(row, step) else "fails"
    return f"{result['difference']:.0e}" if "difference" in result else "yes"


def _failures(row: dict[str, Any]) -> list[str]:
    """Of every step that fails: its error, and what the dense model does there."""
    found = []
    for step, result in row.get("slim", {}).items():
        if result["error"]:
            dense = _dense_error(row, step)
            found.append(f"{step}: {_line(result['error'])} | {_line(dense) if dense else 'passes'}")
    return found if found or not row["error"] else [f"{_line(row['error'])} | "]


def _dense_error(row: dict[str, Any], step: str) -> str:
    error: str = row.get("dense", {}).get(step, {}).get("error", "")
    return error


def _line(text: str) -> str:
    return " ".join(text.split("\n")[0].split()).replace("|", "\\|")[:200]
