"""The table of models that ultralytics trained and exported: what fails says so, and whether pruning is to blame."""

import sys
from pathlib import Path

import pytest
import torch

FOLDER = str(Path(__file__).parents[2] / "benchmarks")


@pytest.fixture
def coverage_trained(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    yield pytest.importorskip("coverage_trained")
    monkeypatch.delitem(sys.modules, "coverage_trained")


def row(**slim):
    good = {step: {"error": ""} for step in ("train", "load", "save")}
    good |= {step: {"error": "", "difference": 2e-5} for step in ("fuse", "torchscript", "onnx")}
    error = next((result["error"] for result in slim.values() if result["error"]), "")
    return {
        "spec": "ultralytics:yolov8n", "version": "8.4", "task": "detect", "error": error, "macs_left": 0.25,
        "params_left": 0.25, "dense": dict(good), "slim": good | slim,
    }  # fmt: skip


def test_no_rows_are_no_section(coverage_trained):
    assert coverage_trained.trained_and_exported({}) == []


def test_a_model_that_passes_shows_how_far_outputs_are_apart(coverage_trained):
    lines = coverage_trained.trained_and_exported({"a": row()})
    assert "| yolov8n | detect | 25.0% | 25.0% | yes | yes | 2e-05 | 2e-05 | 2e-05 | yes |" in lines
    assert "1 of 1 models pass." in lines


def test_a_failure_of_the_pruned_model_only_is_told_from_one_of_both(coverage_trained):
    broken = row(onnx={"error": "RuntimeError: split|sizes\nmore"})
    lines = coverage_trained.trained_and_exported({"a": broken})
    assert "| yolov8n | onnx: RuntimeError: split\\|sizes | passes |" in lines
    broken["dense"]["onnx"] = {"error": "ValueError: no"}
    lines = coverage_trained.trained_and_exported({"a": broken})
    assert "| yolov8n | onnx: RuntimeError: split\\|sizes | ValueError: no |" in lines
    assert any("fails, as the dense model does" in line for line in lines)


def test_a_model_that_was_not_even_pruned_is_a_row(coverage_trained):
    lines = coverage_trained.trained_and_exported({"a": {"spec": "ultralytics:yolov8n", "error": "TraceError: no"}})
    assert "| yolov8n | TraceError: no |  |" in lines
    assert "0 of 1 models pass." in lines


@pytest.fixture
def coverage_yolo_check(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    yield pytest.importorskip("coverage_yolo_check")
    for name in [name for name in sys.modules if name.startswith("coverage_")]:
        monkeypatch.delitem(sys.modules, name)


def test_outputs_too_far_apart_are_an_error(coverage_yolo_check):
    assert coverage_yolo_check._within("onnx", [(1e-5, 0.5)])["error"] == ""
    assert "differ by 1.0e-02" in coverage_yolo_check._within("onnx", [(1e-5, 0.5), (1e-2, 0.5)])["error"]
    assert "differ by 1.0e-04" in coverage_yolo_check._within("onnx", [(1e-4, 0.01)])["error"]
    assert coverage_yolo_check._within("onnx", [(float("nan"), 0.5)])["error"]
    assert "too little" in coverage_yolo_check._within("onnx", [(0.0, 0.0)])["error"]


def test_a_tensor_of_another_shape_is_an_error(coverage_yolo_check):
    with pytest.raises(AssertionError, match=r"last.pt has weight of shape \(16,\), not \(8,\)"):
        coverage_yolo_check._must_be({"weight": (16,)}, {"weight": (8,)}, "last.pt")


def test_a_wrong_score_shows_beside_coordinates(coverage_yolo_check):
    boxes = torch.tensor([[[100.0, 90.0], [0.5, 0.4]]])
    expected = coverage_yolo_check.apart([boxes], end2end=False)
    found = coverage_yolo_check.apart([boxes + torch.tensor([[[0.0], [0.01]]])], end2end=False)
    assert coverage_yolo_check.difference(expected, expected) == 0
    assert coverage_yolo_check.difference(found, expected) == pytest.approx(0.02)


def test_values_that_are_not_finite_are_not_equal(coverage_yolo_check):
    with pytest.raises(ValueError, match="not finite"):
        coverage_yolo_check.difference([torch.tensor([float("nan")])], [torch.tensor([float("nan")])])
