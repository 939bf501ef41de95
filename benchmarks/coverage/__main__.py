"""The sweep's commands: check, trace, tools, yolo, page; README.md says what each is for."""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

from .changes import changes
from .check import check
from .compare import compare
from .journal import FOLDER, Row, commit, read
from .models import TITLES, entries
from .page import page
from .sweep import Job, Limits, sweep
from .tools import TOOLS, version_of
from .yolo import MODELS, Setting, check_yolo, prepare_yolo
from .yolo_data import write_data

ROWS, TRAINED = FOLDER / "coverage.jsonl", FOLDER / "coverage_yolo.jsonl"


def main() -> int:
    options = _options()
    if options.command == "page":
        options.page.write_text(page(read(options.rows), read(options.trained), len(entries())))
        return 0
    known = read(options.journal)
    limits = Limits(options.workers, options.seconds, options.gigabytes)
    if options.command == "yolo":
        return _yolo(options, known, limits)
    wanted = [e for e in entries() if e.library in options.libraries]
    wanted = [e for e in wanted if not options.only or any(part in e.spec for part in options.only)][:: options.every]
    if options.command == "tools":
        jobs = [
            Job(e.spec, compare, (e, tool), tool)
            for e in wanted
            for tool in options.tools
            if e.spec in known and _is_due(known[e.spec].get("tools", {}).get(tool), options.redo, version_of(tool))
        ]
    else:
        arguments = (options.command == "trace",)
        jobs = [Job(e.spec, check, (e, *arguments)) for e in wanted if _is_due(known.get(e.spec), options.redo)]
    sweep(jobs, options.journal, limits)
    rows = read(options.journal)
    mine = {e.spec: rows[e.spec] for e in wanted if e.spec in rows}
    if options.command == "trace":
        print("", *changes(read(options.before), mine), sep="\n")
    return _failures(mine)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    limits = argparse.ArgumentParser(add_help=False)
    limits.add_argument("--workers", type=int, default=2, help="processes, one model each at a time")
    limits.add_argument("--seconds", type=float, default=900, help="limit of time of a model")
    limits.add_argument("--gigabytes", type=float, default=10, help="limit of memory of a worker")
    limits.add_argument(
        "--redo", choices=("failed", "old"), help="models that failed, or whose rows are of another commit, once more"
    )
    chosen = argparse.ArgumentParser(add_help=False, parents=[limits])
    chosen.add_argument("--libraries", nargs="+", choices=TITLES, default=list(TITLES))
    chosen.add_argument("--only", nargs="+", default=[], help="models whose names contain one of these")
    chosen.add_argument("--every", type=int, default=1, metavar="N", help="each N-th of these models")

    one = commands.add_parser("check", parents=[chosen], help="trace, prune and check every model")
    one.add_argument("--journal", type=Path, default=ROWS)
    one = commands.add_parser("trace", parents=[chosen], help="trace only, and show what changed")
    one.add_argument("--journal", type=Path, default=FOLDER / "traces.jsonl")
    one.add_argument("--before", type=Path, default=ROWS, help="rows to compare with, also those of another trace")
    one.set_defaults(redo="old")
    one = commands.add_parser("tools", parents=[chosen], help="let other tools prune models that have been checked")
    one.add_argument("--journal", type=Path, default=ROWS)
    installed = [tool for tool in TOOLS if version_of(tool)]
    one.add_argument("--tools", nargs="+", choices=installed, default=installed, help="of those that are installed")
    one = commands.add_parser("yolo", parents=[limits], help="let ultralytics train and export pruned models")
    one.add_argument("models", nargs="*", default=list(MODELS), help="such as yolov8n or yolo11n-pose")
    one.add_argument("--data", type=Path, required=True, help="folder of images/ and labels/, in YOLO layout")
    one.add_argument("--images", type=int, default=16, help="for training; half as many for validation")
    one.add_argument("--pixels", type=int, default=160)
    one.add_argument("--epochs", type=int, default=1)
    one.add_argument("--journal", type=Path, default=TRAINED)
    one.set_defaults(workers=1)
    one = commands.add_parser("page", help="write docs/coverage.md from the rows")
    one.add_argument("page", type=Path, nargs="?", default=Path("docs/coverage.md"))
    one.add_argument("--rows", type=Path, default=ROWS)
    one.add_argument("--trained", type=Path, default=TRAINED, help="rows of the command yolo")
    return parser.parse_args()


def _is_due(row: Row | None, redo: str | None, version: str = "") -> bool:
    """Whether a model has to be run: there is no row, or one that is to be made once more."""
    if row is None:
        return True
    if redo == "old":
        return bool((row.get("version") != version) if version else (row.get("commit") != commit()))
    return redo == "failed" and bool(row["error"])


def _yolo(options: argparse.Namespace, known: dict[str, Row], limits: Limits) -> int:
    names = [name for name in options.models if _is_due(known.get(f"ultralytics:{name}"), options.redo)]
    with tempfile.TemporaryDirectory() as folder:
        data = write_data(options.data, Path(folder) / "data", options.images, max(options.images // 2, 1))
        setting = Setting({task: str(p) for task, p in data.items()}, folder, options.pixels, options.epochs)
        jobs = [Job(f"ultralytics:{name}", check_yolo, (name, setting)) for name in names]
        # A process for each model: what one leaves behind must not decide about the next.
        sweep(jobs, options.journal, limits, partial(prepare_yolo, folder), tasks=1)
    rows = read(options.journal)
    return _failures({spec: r for spec, r in rows.items() if spec.partition(":")[2] in options.models})


def _failures(rows: dict[str, Row]) -> int:
    failed = [spec for spec, r in rows.items() if r["error"]]
    print(f"{len(rows) - len(failed)} of {len(rows)} models pass" + (f"; not: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
