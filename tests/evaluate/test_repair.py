"""Candidates are repaired with what was asked for, on the same images, which are read once."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import nn

import channelwise as cw
from channelwise.errors import EvaluationError
from channelwise.evaluate import Repair
from channelwise.evaluate.repair import Repairer
from channelwise.methods.one_step.pruned_model import repaired_slim
from channelwise.recovery import recalibrate
from tests.methods.searched import IMAGES, INPUTS, LOADER, wide

GRAPH = cw.trace(wide(), INPUTS)
HALF = GRAPH.select(macs=0.5)


def repaired(repairer: Repairer) -> nn.Module:
    slim = GRAPH.slim(HALF).eval()
    repairer(slim, GRAPH.model, GRAPH.structure, HALF)
    return slim.eval()


def calibrated(model: nn.Module, value: float) -> None:
    model.get_submodule("body.1").running_mean.fill_(value)  # type: ignore[union-attr,operator]


def test_batch_norms_are_re_estimated_on_the_loader() -> None:
    expected = recalibrate(GRAPH.slim(HALF), LOADER).eval()
    torch.testing.assert_close(repaired(Repair(LOADER).repairer())(IMAGES), expected(IMAGES))


def test_function_goes_before_the_loader() -> None:
    slim = repaired(Repair(LOADER, calibrated, (3.0,)).repairer())
    assert (slim.get_submodule("body.1").running_mean == 3).all()  # type: ignore[union-attr]


def test_a_generator_is_read_once_for_all_candidates() -> None:
    repair = Repair(batch for batch in LOADER)
    first, second = repaired(repair.repairer())(IMAGES), repaired(repair.repairer())(IMAGES)
    torch.testing.assert_close(first, second)


def test_other_processes_get_the_images_and_not_the_loader() -> None:
    class Loader:
        def __iter__(self) -> Any:
            return iter(LOADER)

        def __reduce__(self) -> Any:
            raise TypeError("must not be sent")

    repairer = Repair(Loader()).repairer(GRAPH)
    sent = pickle.loads(pickle.dumps(repairer))
    torch.testing.assert_close(repaired(sent)(IMAGES), repaired(repairer)(IMAGES))


def test_images_that_other_processes_do_not_need_are_not_sent() -> None:
    repair = Repair(LOADER, calibrated, (3.0,))
    assert len(repair.images.batches) == len(LOADER)
    assert len(pickle.dumps(repair.repairer())) < IMAGES[0].nbytes


def test_model_that_layerwise_compensation_cannot_follow_is_re_fitted_as_candidates_are(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Twofold(nn.Module):
        """Takes another path for every second batch."""

        def __init__(self) -> None:
            super().__init__()
            self.net, self.extra = wide(), nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(self.extra(x) if float(x.flatten()[0]) > 0 else x)

    graph = cw.trace(Twofold().eval(), INPUTS)
    selection = graph.select(macs=0.5)
    images = [batch.clone() for batch in LOADER]
    for sign, batch in zip((1.0, -1.0, 1.0), images, strict=True):
        batch.view(-1)[0] = sign
    repair = Repair(images)
    slim = repaired_slim(graph, selection, repair, refit=True)
    assert "The repairs layer by layer are left out." in caplog.text
    candidate = graph.slim(selection).eval()
    repair.repairer(graph, refit=True)(candidate, graph.model, graph.structure, selection)
    torch.testing.assert_close(slim(IMAGES), candidate(IMAGES))


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows what happens without CUDA")
def test_a_calibration_that_asks_for_a_missing_device_is_told_to_follow_the_model() -> None:
    def calibrate(model: nn.Module) -> None:
        model(IMAGES.cuda())

    with pytest.raises(EvaluationError, match=r"calibration_fn asks for a device that is not there.*model\.parameters"):
        Repair(calibration_fn=calibrate).repairer().calibrate(wide())


def test_what_fails_is_named() -> None:
    with pytest.raises(EvaluationError, match=r"calibration_fn raised TypeError"):
        repaired(Repair(calibration_fn=calibrated).repairer())
    with pytest.raises(EvaluationError, match=r"Re-estimating batch norms: Wide raised RuntimeError on a batch"):
        repaired(Repair([torch.zeros(1, 5)]).repairer())
