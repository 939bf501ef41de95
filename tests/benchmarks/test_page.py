"""docs/coverage.md: it is what the journals say; what fails says so, and whether pruning is to blame."""

from pathlib import Path

from benchmarks.coverage.journal import FOLDER, read
from benchmarks.coverage.page import page, trained_and_exported


def row(**slim):
    good = {step: {"error": ""} for step in ("train", "load", "save")}
    good |= {step: {"error": "", "difference": 2e-5} for step in ("fuse", "torchscript", "onnx")}
    error = next((result["error"] for result in slim.values() if result["error"]), "")
    return {
        "spec": "ultralytics:yolov8n", "version": "8.4", "task": "detect", "error": error, "macs_left": 0.25,
        "params_left": 0.25, "dense": dict(good), "slim": good | slim,
    }  # fmt: skip


def test_no_rows_are_no_section():
    assert trained_and_exported({}) == []


def test_a_model_that_passes_shows_how_far_outputs_are_apart():
    lines = trained_and_exported({"a": row()})
    assert "| yolov8n | detect | 25.0% | 25.0% | yes | yes | 2e-05 | 2e-05 | 2e-05 | yes |" in lines
    assert "1 of 1 models pass." in lines


def test_a_failure_of_the_pruned_model_only_is_told_from_one_of_both():
    broken = row(onnx={"error": "RuntimeError: split|sizes\nmore"})
    lines = trained_and_exported({"a": broken})
    assert "| yolov8n | onnx: RuntimeError: split\\|sizes | passes |" in lines
    broken["dense"]["onnx"] = {"error": "ValueError: no"}
    lines = trained_and_exported({"a": broken})
    assert "| yolov8n | onnx: RuntimeError: split\\|sizes | ValueError: no |" in lines
    assert any("fails, as the dense model does" in line for line in lines)


def test_a_model_that_was_not_even_pruned_is_a_row():
    lines = trained_and_exported({"a": {"spec": "ultralytics:yolov8n", "error": "TraceError: no"}})
    assert "| yolov8n | TraceError: no |  |" in lines
    assert "0 of 1 models pass." in lines


def test_the_page_is_what_the_journals_say():
    rows = read(FOLDER / "coverage.jsonl")
    written = (Path(__file__).parents[2] / "docs" / "coverage.md").read_text()
    assert page(rows, read(FOLDER / "coverage_yolo.jsonl"), len(rows)) == written


def test_a_sweep_that_has_only_begun_is_a_page():
    vit = read(FOLDER / "coverage.jsonl")["torchvision:vit_b_16"]
    vit |= {"tools": {}, "tripwires": ["tripwire: outputs differ"], "commit": "abc"}
    lines = page({vit["spec"]: vit}, {}, 543).splitlines()
    assert "1 of the 543 models of the sweep have been run so far." in lines
    [library], [model] = (
        [line for line in lines if line.startswith(f"| {name} |")] for name in ("torchvision", "vit_b_16")
    )
    assert library.split("|")[4:6] + library.split("|")[-2:-1] == [" 0 ", "  ", " 1 "]
    assert "tripwire: outputs differ" in model
    assert any("abc (1)" in line for line in lines)
