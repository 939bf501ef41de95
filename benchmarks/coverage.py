"""The coverage sweep: every model pruned to half its channels and checked; a table with ``--page``.

Models of other projects are needed: ``pip install -e .[coverage]``.

Models run in worker processes with a limit of time and memory each, one after the other; a model that crashes, hangs or
takes too much is a row, not the end of the sweep. Rows are kept in a journal as they come: an interrupted sweep goes
on, and ``--again`` repeats what failed. With ``--compare``, other tools prune the same models afterwards, in processes
of their own.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from concurrent.futures import TimeoutError
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from coverage_beside import cell, compared
from coverage_check import check, prepare_worker
from coverage_compare import compare
from coverage_models import Entry, entries
from coverage_tools import TOOLS
from coverage_trained import trained_and_exported
from pebble import ProcessExpired, ProcessPool

JOURNALS = Path(__file__).with_name("journals")
LIBRARIES = ("torchvision", "timm", "ultralytics", "smp", "transformers", "other")
INTRODUCTION = """\
Every model is built with random weights and random batch-norm statistics and traced. A random half of every channel
group is removed; the slim model is compared with the masked one, whose norms count only what is kept, and so is one
with another, unbalanced selection; their outputs may differ by what rounding changes, no more; MACs and parameters are
counted on the slim model; it is trained a step, saved, and loaded into a fresh model. *Prunable* is the share of the
output channels of convolutions; channels that a network returns are never among them. *Time* and *memory* are those of
the trace, verification included, beside those of a forward pass of one image of the size given; *quick* are traces
within four forward passes and 0.3 s of processor time, *light* those within three times the memory and 64 MB. *Slim
only* are groups for which zeroing is not the same as removing (behind a mean over channels in the model's own code, for
example): for these shapes, counts and training are checked, and that the same channels meet in the slim model. Of
detectors the outputs of the heads are compared, as rounding decides the order of boxes; their own pre- and
postprocessing runs. YOLO models return the features of their neck beside their predictions; these are left out, so that
they need not stay. Rows are kept in `benchmarks/journals/` as they are measured, so that some are of earlier versions
of channelwise than others; without that journal all of them are measured anew.""".splitlines()
TITLES = {
    "torchvision": "torchvision",
    "timm": "timm",
    "ultralytics": "ultralytics",
    "smp": "segmentation-models-pytorch",
    "transformers": "transformers (images)",
    "other": "audio and volumes (MONAI, transformers)",
}


@dataclass(frozen=True)
class Limits:
    """What a worker process may use for one model, and how many there are."""

    workers: int
    seconds: float
    gigabytes: float

    def pool(self) -> ProcessPool:
        """Worker processes; a new one takes the place of one that is killed."""
        return ProcessPool(self.workers, max_tasks=25, initializer=prepare_worker, initargs=[self.gigabytes])

    def result(self, future: Any) -> dict[str, Any]:
        """What a worker returns, or the ``error`` of why it returned nothing."""
        try:
            found: dict[str, Any] = future.result()
            return found
        except TimeoutError:
            return {"stage": "run", "error": f"TimeoutError: more than {self.seconds:g} s"}
        except ProcessExpired as error:
            return {"stage": "run", "error": f"ProcessExpired: {error}"}
        except MemoryError:
            return {"stage": "run", "error": f"MemoryError: more than {self.gigabytes:g} GiB"}


def sweep(todo: list[Entry], journal: Path, limits: Limits) -> None:
    """Check these models and append their rows to the journal."""
    with limits.pool() as pool, journal.open("a") as out:
        futures = [(entry, pool.schedule(check, [entry], timeout=limits.seconds)) for entry in todo]
        start = time.perf_counter()
        for number, (entry, future) in enumerate(futures, start=1):
            row = {"spec": entry.spec, "inputs": list(entry.inputs), **limits.result(future)}
            out.write(json.dumps(row) + "\n")
            out.flush()
            verdict = row["error"].splitlines()[0][:100] if row["error"] else f"{share(row):.1%}"
            print(f"{number}/{len(todo)} {time.perf_counter() - start:.0f} s {entry.spec}: {verdict}", flush=True)


def sweep_tools(todo: list[Entry], journal: Path, limits: Limits) -> None:
    """Let every tool prune these models and append their rows, which must be there, with the results."""
    known = read(journal)
    with limits.pool() as pool, journal.open("a") as out:
        futures = [
            (entry, {tool: pool.schedule(compare, [entry, tool], timeout=limits.seconds) for tool in TOOLS})
            for entry in todo
        ]
        start = time.perf_counter()
        for number, (entry, tools) in enumerate(futures, start=1):
            results = {tool: limits.result(future) for tool, future in tools.items()}
            out.write(json.dumps(known[entry.spec] | {"tools": results}) + "\n")
            out.flush()
            verdicts = "; ".join(f"{tool} {cell(result)}" for tool, result in results.items())
            print(f"{number}/{len(todo)} {time.perf_counter() - start:.0f} s {entry.spec}: {verdicts}", flush=True)


def read(journal: Path) -> dict[str, dict[str, Any]]:
    """The latest row of every model."""
    if not journal.exists():
        return {}
    return {row["spec"]: row for row in map(json.loads, journal.read_text().splitlines())}


def share(row: dict[str, Any]) -> float:
    """The share of the output channels of convolutions that can be pruned; 1 if there are none."""
    return row["conv_prunable"] / row["conv_outputs"] if row.get("conv_outputs") else 1.0


def is_convolutional(row: dict[str, Any]) -> bool:
    """Whether convolutions other than a patch embedding produce its channels."""
    return row.get("conv_outputs", 0) >= 1000


def page(rows: dict[str, dict[str, Any]], trained: dict[str, dict[str, Any]], total: int) -> str:
    """docs/coverage.md; ``trained`` are the rows of coverage_yolo.py, ``total`` the models that are to be in it."""
    done = [row for row in rows.values() if not row["error"]]
    lines = [
        "# Coverage",
        "",
        "Written by `python benchmarks/coverage.py`; do not edit.",
        "",
        *INTRODUCTION,
        "",
        *([f"{len(rows)} of the {total} models of the sweep have been run so far.", ""] if len(rows) < total else []),
        "| library | models | pass | convolutional | median prunable | below 60 % | quick | light |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for library in LIBRARIES:
        mine = [row for row in rows.values() if row["spec"].startswith(f"{library}:")]
        passed = [row for row in mine if not row["error"]]
        shares = [share(row) for row in passed if is_convolutional(row)]
        if not passed:
            continue
        quick = sum(row["trace_s"] <= 4 * row["forward_s"] + 0.3 for row in passed)
        light = sum(row["trace_bytes"] <= 3 * row["forward_bytes"] + 64 * 2**20 for row in passed)
        lines.append(
            f"| {TITLES[library]} | {len(mine)} | {len(passed)} | {len(shares)} | {median(shares):.1%} "
            f"| {sum(s < 0.6 for s in shares)} | {quick} | {light} |"
        )
    causes: Counter[str] = Counter()
    for row in done:
        causes.update(row["causes"])
    lines += [
        "",
        "Output channels that stay, of all models, by cause:",
        "",
        "| cause | channels | models |",
        "|---|--:|--:|",
    ]
    for cause, channels in causes.most_common():
        lines.append(f"| {cause} | {channels:,} | {sum(cause in row['causes'] for row in done)} |")
    failed = [row for row in rows.values() if row["error"]]
    if failed:
        lines += ["", "## Not passed", "", "| model | at | because |", "|---|---|---|"]
        for row in failed:
            reason = row["error"].splitlines()[0][:200].replace("|", "\\|")
            lines.append(f"| {row['spec'].partition(':')[2]} | {row['stage']} | {reason} |")
    for library in LIBRARIES:
        mine = sorted((row for row in done if row["spec"].startswith(f"{library}:")), key=lambda row: row["spec"])
        if mine:
            lines += ["", f"## {TITLES[library]}", "", *table(mine)]
    lines += compared(rows)
    lines += trained_and_exported(trained)
    return "\n".join(lines) + "\n"


def table(rows: list[dict[str, Any]]) -> list[str]:
    """One line a model; what stays for another reason than being an output, largest first."""
    lines = [
        "| model | input | groups | slim only | prunable | MACs left | time | memory | what else stays, and why |",
        "|---|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    for row in rows:
        left = row["macs_half"] / row["macs"] if row["macs"] else 1.0
        stays = [
            f"{channels:,}: {reason.replace('|', chr(92) + '|')[:150]}"
            for reason, channels in row["reasons"].items()
            if "an output of the network" not in reason
        ]
        lines.append(
            f"| {row['spec'].partition(':')[2]} | {' '.join(row['inputs'])} | {row['groups']} | {row['slim_only']} "
            f"| {share(row):.1%} | {left:.1%} | {row['trace_s'] / row['forward_s']:.1f} "
            f"| {row['trace_bytes'] / max(row['forward_bytes'], 1):.1f} | {'; '.join(stays[:2])} |"
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=list(LIBRARIES))
    parser.add_argument("--only", nargs="+", default=[], help="models whose names contain one of these")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=300, help="limit of time of a model")
    parser.add_argument("--gigabytes", type=float, default=10, help="limit of memory of a worker")
    parser.add_argument("--limit", type=int, help="check so many models and stop")
    parser.add_argument("--compare", action="store_true", help="let other tools prune these models, too")
    parser.add_argument("--again", action="store_true", help="repeat models that failed")
    parser.add_argument("--journal", type=Path, default=JOURNALS / "coverage.jsonl")
    parser.add_argument(
        "--trained", type=Path, default=JOURNALS / "coverage_yolo.jsonl", help="journal of coverage_yolo.py"
    )
    parser.add_argument("--page", type=Path, help="write the table there, such as docs/coverage.md")
    options = parser.parse_args()

    known = read(options.journal)
    limits = Limits(options.workers, options.seconds, options.gigabytes)
    wanted = [
        entry
        for entry in entries(set(options.libraries))
        if not options.only or any(part in entry.spec for part in options.only)
    ]
    todo = [e for e in wanted if e.spec not in known or (options.again and known[e.spec]["error"])]
    sweep(todo[: options.limit], options.journal, limits)
    if options.compare:
        known = read(options.journal)
        alone = [e for e in wanted if e.spec in known and "tools" not in known[e.spec]]
        sweep_tools(alone[: options.limit], options.journal, limits)
    rows = read(options.journal)
    if options.page:
        options.page.write_text(page(rows, read(options.trained), len(entries(set(LIBRARIES)))))
    failed = [row["spec"] for row in rows.values() if row["error"]]
    print(f"{len(rows) - len(failed)} of {len(rows)} models pass" + (f"; not: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
