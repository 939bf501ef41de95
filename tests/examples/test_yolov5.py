"""YOLOv5: sizes as published, boxes as published, and every channel but those of the outputs can be pruned."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import channelwise as cw
from channelwise.testing import check_oracle


@pytest.mark.parametrize(
    ("name", "parameters", "gmacs"),
    [("yolov5n", 1_872_157, 2.23), ("yolov5s", 7_235_389, 8.22), ("yolov5m", 21_190_557, 24.44)],
)
def test_parameters_and_macs_at_640_px_are_the_published_ones(name: str, parameters: int, gmacs: float) -> None:
    import yolov5

    with torch.device("meta"):
        model = getattr(yolov5, name)().eval()
        with FlopCounterMode(display=False) as counter:
            boxes, _ = model(torch.empty(1, 3, 640, 640))
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, abs=0.005)
    assert boxes.shape == (1, 25_200, 85)


def test_eval_mode_decodes_the_raw_maps_of_every_scale_into_pixels() -> None:
    import yolov5

    detect = yolov5.Detect((4, 4, 4), classes=2).eval()
    for parameter in detect.parameters():
        nn.init.zeros_(parameter)
    boxes, maps = detect([torch.rand(1, 4, h, 2 * h) for h in (4, 2, 1)])
    assert [tuple(y.shape) for y in maps] == [(1, 3, 4, 8, 7), (1, 3, 2, 4, 7), (1, 3, 1, 2, 7)]
    # A raw output of zero is the anchor itself in the middle of its cell, with all scores at one half.
    expected = [
        [(column + 0.5) * stride, (row + 0.5) * stride, *anchor, 0.5, 0.5, 0.5]
        for (h, w), stride, anchors in zip([(4, 8), (2, 4), (1, 2)], (8, 16, 32), yolov5.ANCHORS, strict=True)
        for anchor in anchors
        for row in range(h)
        for column in range(w)
    ]
    assert torch.allclose(boxes[0], torch.tensor(expected))


def test_slim_equals_masked_and_only_the_channels_of_the_outputs_stay() -> None:
    import yolov5

    images = torch.randn(2, 3, 96, 96)
    report = check_oracle(yolov5.yolov5n(), images, min_pruned=0.86)
    assert report.error < 1e-12
    assert report.changed > 0.01
    assert report.compared_in_training
    assert report.trained
    stay = {frozen.tensor for frozen in report.graph.frozen if frozen.role == "output"}
    assert stay == {f"detect.heads.{scale}.weight" for scale in range(3)}


def test_a_slim_network_of_a_target_runs_and_takes_a_training_step() -> None:
    import yolov5

    graph = cw.trace(yolov5.yolov5n(classes=3), torch.randn(1, 3, 64, 64))
    selection = graph.select(macs=0.7)
    slim = graph.slim(selection)
    assert graph.macs(selection) == pytest.approx(0.7 * graph.macs(), rel=0.01)
    images = torch.randn(2, 3, 64, 64)
    optimizer = torch.optim.SGD(slim.parameters(), lr=1e-3)
    before = _loss(slim.train()(images))
    before.backward()
    optimizer.step()
    assert _loss(slim(images)) < before
    boxes, maps = slim.eval()(images)
    assert boxes.shape == (2, 3 * (64 + 16 + 4), 8)
    assert [tuple(y.shape) for y in maps] == [(2, 3, 8, 8, 8), (2, 3, 4, 4, 8), (2, 3, 2, 2, 8)]


def _loss(maps: list[Tensor]) -> Tensor:
    return torch.stack([y.square().mean() for y in maps]).sum()
