"""Statistics of a slim model's batch norms that follow from the dense model's on a few samples."""

from __future__ import annotations

import torch
from torch import nn

from channelwise.statistics.norms import NormInputs, inputs_of_norms, paired

torch.manual_seed(0)
CHANNELS = 50
SCALE, SHIFT = torch.rand(CHANNELS) * 3 + 0.2, torch.randn(CHANNELS)


def samples(number: int) -> torch.Tensor:
    """(number, channels, positions): samples differ, which is what makes statistics of a few uncertain."""
    each = torch.randn(number, CHANNELS, 1) * torch.rand(number, CHANNELS, 1)
    return each + torch.randn(number, CHANNELS, 8) * (0.3 + torch.rand(number, CHANNELS, 1))


def test_means_and_mean_squares_of_every_sample() -> None:
    x = torch.randn(6, 3, 4, 5)
    found = NormInputs.of([x[:4], x[4:]])
    torch.testing.assert_close(found.mean, x.mean((2, 3)))
    mean, variance = found.pooled()
    torch.testing.assert_close(mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(variance, x.var((0, 2, 3), correction=0))
    last = NormInputs.of([x.movedim(1, -1)], axis=-1)
    torch.testing.assert_close(last.mean, found.mean)
    flat = NormInputs.of([torch.ones(5, 3)])
    assert not flat.square.any()


def test_a_model_compared_with_itself_has_its_own_statistics() -> None:
    seen = NormInputs.of([samples(30)])
    mean, variance = torch.randn(CHANNELS), torch.rand(CHANNELS) + 0.5
    for found, own in zip(paired(seen, seen, mean, variance), (mean, variance), strict=True):
        torch.testing.assert_close(found, own)


def test_what_samples_miss_of_the_dense_statistics_is_made_up_for() -> None:
    """What a slim model sees goes along with the dense model's, and with something else."""
    many, few = samples(5000), samples(40)
    other = [0.3 * torch.randn(*x.shape) for x in (many, few)]
    slim_many, slim_few = (x * SCALE[:, None] + SHIFT[:, None] + o for x, o in zip((many, few), other, strict=True))
    mean, variance = NormInputs.of([many]).pooled()
    wanted = NormInputs.of([slim_many]).pooled()
    plain = NormInputs.of([slim_few]).pooled()
    found = paired(NormInputs.of([slim_few]), NormInputs.of([few]), mean, variance)
    for a, b, c in zip(found, plain, wanted, strict=True):
        assert (a - c).square().mean() < 0.3 * (b - c).square().mean()


def test_what_has_nothing_to_do_with_the_dense_model_hardly_changes() -> None:
    slim, dense = NormInputs.of([samples(400)]), NormInputs.of([samples(400)])
    plain = slim.pooled()
    mean, variance = dense.pooled()
    found = paired(slim, dense, mean + 0.1, variance * 1.1)
    for a, b in zip(found, plain, strict=True):
        assert (a - b).abs().mean() < 0.02


def test_inputs_of_all_norms_of_a_model_are_those_of_all_batches() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 25, 6), nn.BatchNorm1d(6))
    batches = [torch.randn(2, 3, 5, 5), torch.randn(3, 3, 5, 5)]
    found = inputs_of_norms(model.eval(), batches)
    assert found.keys() == {"1", "4"}
    torch.testing.assert_close(found["1"].mean, torch.cat([model[0](b).mean((2, 3)) for b in batches]))
    assert not any(m._forward_pre_hooks for m in model.modules())
