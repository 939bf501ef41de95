"""The second-order ranking: channels that others can replace are the least important."""

import numpy as np
import pytest
import torch
from torch import nn

import channelwise as cw
from channelwise import ranking
from channelwise.errors import InvalidArgumentError
from channelwise.ranking import Reconstruction
from channelwise.ranking.reconstruction import _eliminate


class Net(nn.Module):
    def __init__(self, reader: nn.Module) -> None:
        super().__init__()
        self.producer = nn.Conv2d(3, 8, 3, padding=1)
        self.reader = reader
        self.other = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x = self.producer(x).relu()
        return self.reader(x), self.other(x)


def scores_of(model, images):
    graph = cw.trace(model, images[0])
    bound = ranking.bind(Reconstruction(images), model, graph.structure)
    (group,) = graph.groups
    return ranking.scores(bound, group, graph.tensors())


@pytest.fixture
def images():
    torch.manual_seed(0)
    return [torch.randn(32, 3, 6, 6) for _ in range(4)]


READERS = [lambda: nn.Conv2d(8, 5, 3), lambda: nn.ConvTranspose2d(8, 5, 2, 2)]


@pytest.mark.parametrize("make", READERS)
def test_one_of_two_equal_channels_goes_first_however_large(make, images):
    model = Net(make()).eval()
    with torch.no_grad():
        for parameter in model.producer.parameters():
            parameter[5] = parameter[2]
        model.producer.weight[[2, 5]] *= 10
        model.producer.bias[[2, 5]] *= 10
    values = scores_of(model, images)
    assert {int(np.argmin(values))} <= {2, 5}
    assert max(values[2], values[5]) > 10 * min(values[2], values[5])


def test_the_first_score_is_the_error_that_least_squares_leaves(images):
    torch.manual_seed(1)
    model = Net(nn.Conv2d(8, 5, 1)).eval()
    model.other = nn.Conv2d(8, 2, 1)
    values = scores_of(model, images)
    first = int(np.argmin(values))
    with torch.no_grad():
        seen = model.producer(torch.cat(images)).relu().movedim(1, -1).flatten(0, -2).double()
    seen = seen - seen.mean(0)
    rest = np.delete(np.arange(8), first)
    expected = 0.0
    for layer in (model.reader, model.other):
        target = seen @ layer.weight.detach()[:, :, 0, 0].T.double()
        answer = torch.linalg.lstsq(seen[:, rest], target).solution
        expected += float(((seen[:, rest] @ answer - target).square().mean(0) / target.square().mean(0)).sum())
    # A little is left to the ridge and to the rows not looked at (none here: 36 positions).
    assert values[first] == pytest.approx(expected, rel=0.05)


def test_wide_groups_are_eliminated_in_few_steps(images):
    model = nn.Sequential(nn.Conv2d(3, 400, 1), nn.ReLU(), nn.Conv2d(400, 4, 1)).eval()
    values = scores_of(model, images)
    assert values.shape == (400,)
    assert len(np.unique(values)) == 400


def test_a_group_that_no_layer_reads_is_ranked_by_its_weights(images):
    class Elementwise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 1)

        def forward(self, x):
            return self.conv(x).relu().sum(1)

    values = scores_of(Elementwise().eval(), images)
    assert values.sum() == pytest.approx(1.0)


def test_fewer_images_than_inputs_are_enough():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 200, 3), nn.ReLU(), nn.Conv2d(200, 4, 3)).eval()
    values = scores_of(model, [torch.randn(1, 3, 7, 7) * 100 + 50])
    assert np.isfinite(values).all()


def test_it_needs_a_loader_or_grams():
    with pytest.raises(InvalidArgumentError, match="loader"):
        Reconstruction()


def test_unbound_it_says_how_to_use_it(images):
    model = Net(nn.Conv2d(8, 5, 1)).eval()
    graph = cw.trace(model, images[0])
    with pytest.raises(InvalidArgumentError, match="select"):
        ranking.scores(Reconstruction(images), graph.groups[0], graph.tensors())


def test_elimination_ends_whatever_the_errors_are():
    class Reader:
        channels = np.arange(8)

        def errors(self, alive):
            return torch.full((int(alive.sum()),), float("nan"), dtype=torch.float64)

        def eliminate(self, gone):
            pass

    group = cw.trace(Net(nn.Conv2d(8, 5, 3)), torch.randn(1, 3, 6, 6)).groups[0]
    assert _eliminate(group, [Reader()]).shape == (8,)
