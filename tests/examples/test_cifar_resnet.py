"""The CIFAR ResNets: sizes as published, option-A shortcuts without parameters."""

from __future__ import annotations

import pytest
import torch


@pytest.mark.parametrize(("name", "parameters"), [("resnet20", 269_722), ("resnet56", 853_018)])
def test_parameter_counts_are_those_of_the_published_checkpoints(name: str, parameters: int) -> None:
    import cifar_resnet

    model = getattr(cifar_resnet, name)()
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_shortcut_takes_every_second_pixel_and_pads_both_sides_with_zero_channels() -> None:
    import cifar_resnet

    x = torch.rand(2, 4, 6, 6)
    y = cifar_resnet.Subsample(4)(x)
    assert y.shape == (2, 8, 3, 3)
    assert torch.equal(y[:, 2:6], x[:, :, ::2, ::2])
    assert not y[:, :2].any()
    assert not y[:, 6:].any()
