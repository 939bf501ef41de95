"""What is said about YOLO models in ultralytics' hands: outputs that are apart, shapes and values that are wrong."""

import pytest
import torch

from benchmarks.coverage import outputs, yolo


def test_outputs_too_far_apart_are_an_error():
    assert yolo._within("onnx", [(1e-5, 0.5)])["error"] == ""
    assert "differ by 1.0e-02" in yolo._within("onnx", [(1e-5, 0.5), (1e-2, 0.5)])["error"]
    assert "differ by 1.0e-04" in yolo._within("onnx", [(1e-4, 0.01)])["error"]
    assert yolo._within("onnx", [(float("nan"), 0.5)])["error"]
    assert "too little" in yolo._within("onnx", [(0.0, 0.0)])["error"]


def test_a_tensor_of_another_shape_is_an_error():
    with pytest.raises(AssertionError, match=r"last.pt has weight of shape \(16,\), not \(8,\)"):
        yolo._must_be({"weight": (16,)}, {"weight": (8,)}, "last.pt")


def test_a_wrong_score_shows_beside_coordinates():
    boxes = torch.tensor([[[100.0, 90.0], [0.5, 0.4]]])
    expected = outputs.apart([boxes], end2end=False)
    found = outputs.apart([boxes + torch.tensor([[[0.0], [0.01]]])], end2end=False)
    assert outputs.difference(expected, expected) == 0
    assert outputs.difference(found, expected) == pytest.approx(0.02)


def test_values_that_are_not_finite_are_not_equal():
    with pytest.raises(ValueError, match="not finite"):
        outputs.difference([torch.tensor([float("nan")])], [torch.tensor([float("nan")])])
