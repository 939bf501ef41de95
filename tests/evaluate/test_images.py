"""Calibration images are read once, as many as were asked for, and what layers see on them is gathered once."""

from __future__ import annotations

import pytest
import torch

import channelwise as cw
from channelwise.errors import InvalidArgumentError
from channelwise.evaluate.images import SAMPLES, Images, images_of
from tests.methods.searched import INPUTS, LOADER, nearness, wide


def test_by_default_as_many_batches_are_read_as_hold_the_number_of_samples() -> None:
    batches = [torch.zeros(300, 1)] * 10
    assert sum(map(len, Images(batches).batches)) == 1200 >= SAMPLES
    assert len(Images(batches, 7).batches) == 7
    assert len(Images(batches[:2]).batches) == 2
    assert len(Images([{"x": torch.zeros(600, 1)}] * 3).batches) == 2


def test_images_come_from_the_same_arguments_only() -> None:
    images = Images(LOADER, 2)
    assert images.come_from(LOADER, 2, None)
    assert not images.come_from(LOADER, 1, None)
    assert not images.come_from(list(LOADER), 2, None)
    assert not images.come_from(LOADER, 2, nearness)


def test_moments_of_the_same_weights_are_gathered_once() -> None:
    images, model = Images(LOADER), wide()
    graph = cw.trace(model, INPUTS)
    grams = images.grams(graph)
    assert images.grams(cw.trace(wide(), INPUTS)) is grams
    with torch.no_grad():
        model.head.weight.add_(1)
    assert images.grams(graph) is not grams


def test_number_of_batches_without_a_loader_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="batches=4"):
        images_of(None, batches=4)
