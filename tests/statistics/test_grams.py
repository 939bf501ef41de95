"""Moments of what layers read."""

import pytest
import torch
from torch import nn

import channelwise as cw
from channelwise.errors import InvalidArgumentError
from channelwise.statistics import gather


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 6, 1, bias=False)
        self.after = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4, bias=False)

    def forward(self, x):
        x = self.norm(self.first(x)).relu()
        return self.head(self.after(self.second(x)).relu().mean((2, 3)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


def test_covariance_is_that_of_all_rows_of_all_batches(net):
    batches = [torch.randn(3, 3, 6, 6), torch.randn(5, 3, 6, 6)]
    structure = cw.trace(net, batches[0]).structure
    grams = gather(net, structure, batches, positions=1000)
    with torch.no_grad():
        seen = net.norm(net.first(torch.cat(batches))).relu().movedim(1, -1).flatten(0, -2)
    expected = torch.cov(seen.T, correction=0)
    torch.testing.assert_close(grams.layers["second.weight"].covariance[0], expected)
    torch.testing.assert_close(grams.layers["second.weight"].mean[0], seen.mean(0))


def test_only_layers_that_a_batch_norm_follows_at_once_are_normalised(net):
    structure = cw.trace(net, torch.randn(2, 3, 6, 6)).structure
    layers = gather(net, structure, [torch.randn(4, 3, 6, 6)]).layers
    assert layers["second.weight"].normalised
    assert not layers["head.weight"].normalised
    assert not layers["head.weight"].free_offset


def test_layers_that_read_the_image_are_not_looked_at(net):
    structure = cw.trace(net, torch.randn(2, 3, 6, 6)).structure
    assert set(gather(net, structure, [torch.randn(4, 3, 6, 6)]).layers) == {"second.weight", "head.weight"}


def test_what_does_not_fit_into_memory_is_named(net):
    structure = cw.trace(net, torch.randn(2, 3, 6, 6)).structure
    grams = gather(net, structure, [torch.randn(4, 3, 6, 6)], memory=6 * 6 * 8)
    assert set(grams.layers) == {"head.weight"}
    assert "memory" in grams.skipped["second.weight"]


def test_the_model_is_not_changed(net):
    net.train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    gather(net, cw.trace(net, torch.randn(2, 3, 6, 6)).structure, [torch.randn(4, 3, 6, 6)])
    assert net.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_an_empty_loader_is_refused(net):
    with pytest.raises(InvalidArgumentError, match="yields nothing"):
        gather(net, cw.trace(net, torch.randn(2, 3, 6, 6)).structure, [])
