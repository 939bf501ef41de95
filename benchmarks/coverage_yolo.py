"""YOLO models, pruned, in ultralytics' own hands: its trainer, its checkpoints, ``fuse()`` and its exporter.

``coverage.py`` checks that pruned models are right; this checks that the package goes on working with them. Needs
``pip install -e .[coverage]`` and a detection data set in YOLO layout with the classes RBC, WBC and Platelets, from
which labels for all tasks are made. Nothing is downloaded. Rows are kept in a journal as they come: an interrupted run
goes on, and ``--again`` repeats what failed. ``coverage.py --page`` writes the table.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from coverage import Limits, read
from coverage_trained import trained_and_exported
from coverage_yolo_check import Setting, check_yolo, prepare_yolo
from coverage_yolo_data import write_data
from pebble import ProcessPool

MODELS = (
    "yolov3-tiny", "yolov5n", "yolov6n", "yolov8n", "yolov9t", "yolov10n", "yolo11n", "yolo12n", "yolov8n-seg",
    "yolov8n-pose", "yolov8n-cls", "yolov8n-obb", "yolo11n-seg", "yolo11n-pose", "yolo11n-cls", "yolo11n-obb", "yolov3",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=list(MODELS), help="such as yolov8n or yolo11n-pose")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/bccd"), help="with images/, labels/")
    parser.add_argument("--images", type=int, default=16, help="for training; half as many for validation")
    parser.add_argument("--pixels", type=int, default=160)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=900, help="limit of time of a model")
    parser.add_argument("--gigabytes", type=float, default=10, help="limit of memory of a worker")
    parser.add_argument("--again", action="store_true", help="repeat models that failed")
    parser.add_argument("--journal", type=Path, default=Path(__file__).with_name("journals") / "coverage_yolo.jsonl")
    options = parser.parse_args()

    known = read(options.journal)
    rows = {name: known.get(f"ultralytics:{name}") for name in options.models}
    todo = [name for name, row in rows.items() if row is None or (options.again and row["error"])]
    limits = Limits(1, options.seconds, options.gigabytes)
    with tempfile.TemporaryDirectory() as folder, options.journal.open("a") as out:
        data = write_data(options.data, Path(folder) / "data", options.images, max(options.images // 2, 1))
        setting = Setting({task: str(p) for task, p in data.items()}, folder, options.pixels, options.epochs)
        start = time.perf_counter()
        # A process for each model: what one leaves behind must not decide about the next.
        pool = ProcessPool(1, max_tasks=1, initializer=prepare_yolo, initargs=[options.gigabytes, folder])
        with pool:
            for number, name in enumerate(todo, start=1):
                found = limits.result(pool.schedule(check_yolo, [name, setting], timeout=options.seconds))
                row = {"spec": f"ultralytics:{name}", **found}
                out.write(json.dumps(row) + "\n")
                out.flush()
                verdict = row["error"].splitlines()[0][:100] if row["error"] else "passes"
                print(f"{number}/{len(todo)} {time.perf_counter() - start:.0f} s {name}: {verdict}", flush=True)
    done = read(options.journal)
    print("\n".join(trained_and_exported(done)))
    return 1 if any(row["error"] for row in done.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
