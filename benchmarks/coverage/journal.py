"""Rows of the sweep: a line each, the newest of a model counts; what is read off them; the code they were made with."""

from __future__ import annotations

import hashlib
import json
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import channelwise

Row = dict[str, Any]
FOLDER = Path(__file__).parents[1] / "journals"


def read(path: Path) -> dict[str, Row]:
    """What is known of every model.

    A row with ``error`` takes the place of earlier ones, except for their ``tools``: results of tools add up.
    """
    rows: dict[str, Row] = {}
    lines = path.read_text().splitlines() if path.exists() else []
    for new in map(json.loads, lines):
        old = rows.get(new["spec"], {})
        tools = old.get("tools", {}) | new.get("tools", {})
        rows[new["spec"]] = (new if "error" in new else old) | ({"tools": tools} if tools else {})
    return rows


def append(path: Path, row: Row) -> None:
    """Write a row at the end; it is in the file when this returns."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


@cache
def commit() -> str:
    """The commit that last changed the channelwise that runs, and a digest of its files if they differ from it.

    Without a history, the version and the digest.
    """
    folder = Path(channelwise.__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        name, changed = git("log", "-1", "--format=%h", "--", "."), git("status", "--porcelain", "--", ".")
    except (OSError, subprocess.CalledProcessError):
        name, changed = version("channelwise"), "all"
    if not changed:
        return name
    contents = b"".join(path.read_bytes() for path in sorted(folder.rglob("*.py")))
    return f"{name}+{hashlib.sha256(contents).hexdigest()[:8]}"


def share(row: Row) -> float:
    """The share of the output channels of convolutions that can be pruned; 1 if there are none."""
    return row["conv_prunable"] / row["conv_outputs"] if row.get("conv_outputs") else 1.0


def macs_left(row: Row) -> float:
    """The share of the MACs that are left of a model without half of its channels."""
    return row["macs_half"] / row["macs"] if row["macs"] else 1.0


def quick(row: Row) -> bool:
    """Whether the trace took no longer than four forward passes and 0.3 s."""
    return row["trace_s"] <= 4 * row["forward_s"] + 0.3


def light(row: Row) -> bool:
    """Whether the trace needed no more than three times the memory of a forward pass and 64 MB."""
    return row["trace_bytes"] <= 3 * row["forward_bytes"] + 64 * 2**20
