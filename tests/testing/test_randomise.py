"""Models under test get values with which a wrong pruning cannot go unnoticed."""

from __future__ import annotations

import torch
from torch import nn

from channelwise.testing import randomise


def test_tiny_layer_scales_become_scales_that_matter() -> None:
    model = nn.BatchNorm2d(8)
    nn.init.constant_(model.weight, 1e-6)
    randomise(model)
    assert float(model.weight.detach().min()) >= 0.5
    assert torch.unique(model.weight).numel() == 8
