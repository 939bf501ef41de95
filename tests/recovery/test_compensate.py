"""Least-squares compensation: what can be made good is made good, and nothing gets worse."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import channelwise as cw
from channelwise.errors import InvalidArgumentError
from channelwise.recovery import compensate, compensate_from_grams
from channelwise.selection import Selection
from channelwise.statistics import gather


class Twins(nn.Module):
    """Channels come in equal pairs, so half of them can be made good without any error."""

    def __init__(self, reader: nn.Module, grouped: int = 1, flat: bool = False) -> None:
        super().__init__()
        self.producer = nn.Conv2d(3, 8, 3, padding=1)
        self.reader = reader
        self.flat = flat
        with torch.no_grad():
            for parameter in self.producer.parameters():
                pairs = parameter.unflatten(0, (grouped, 2, -1))
                pairs[:, 1] = pairs[:, 0]

    def forward(self, x):
        x = self.producer(x).relu()
        return self.reader(x.mean((2, 3)) if isinstance(self.reader, nn.Linear) and not self.flat else
                           x.flatten(1) if self.flat else x)  # fmt: skip


READERS = {
    "convolution": (lambda: nn.Conv2d(8, 5, 3), 1, False),
    "convolution without bias": (lambda: nn.Conv2d(8, 5, 3, bias=False), 1, False),
    "strided and dilated": (lambda: nn.Conv2d(8, 5, 3, stride=2, dilation=2), 1, False),
    "grouped": (lambda: nn.Conv2d(8, 6, 3, groups=2), 2, False),
    "transposed": (lambda: nn.ConvTranspose2d(8, 5, 3, stride=2), 1, False),
    "linear": (lambda: nn.Linear(8, 5), 1, False),
    "linear behind a flatten": (lambda: nn.Linear(8 * 36, 5), 1, True),
}


def kept_firsts(graph, grouped):
    """The first channel of every pair."""
    (group,) = graph.groups
    block = group.size // grouped
    kept = [b * block + i for b in range(grouped) for i in range(block // 2)]
    return Selection({group.name: kept})


@pytest.mark.parametrize("case", READERS)
@pytest.mark.parametrize("how", ["dense", "sequential"])
def test_channels_that_others_can_replace_are_made_good(case, how):
    torch.manual_seed(0)
    make, grouped, flat = READERS[case]
    model = Twins(make(), grouped, flat).eval()
    images = [torch.randn(40, 3, 6, 6) for _ in range(10)]
    graph = cw.trace(model, images[0])
    selection = kept_firsts(graph, grouped)
    slim = graph.slim(selection)
    with torch.no_grad():
        expected, before = model(images[0]), slim(images[0])
    if how == "dense":
        compensate_from_grams(
            slim, model, graph.structure, selection, gather(model, graph.structure, images), ridge=1e-9
        )
    else:
        compensate(slim, graph, selection, images, ridge=1e-9)
    with torch.no_grad():
        after = slim(images[0])
    assert F.mse_loss(before, expected) > 1e-3
    assert F.mse_loss(after, expected) < 1e-7


class Residual(nn.Module):
    """Batch norms, a shortcut, a concatenation and a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.inner = nn.Sequential(
            nn.Conv2d(16, 24, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU(),
            nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False), nn.BatchNorm2d(24), nn.ReLU(),
            nn.Conv2d(24, 16, 1, bias=False), nn.BatchNorm2d(16),
        )  # fmt: skip
        self.mix = nn.Conv2d(40, 12, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = self.stem(x)
        y = (x + self.inner(x)).relu()
        z = torch.cat([y, self.inner[:3](x)], 1)
        return self.head(self.mix(z).relu().mean((2, 3)))


@pytest.fixture
def trained():
    """A network whose statistics are real."""
    torch.manual_seed(1)
    model = Residual()
    for _ in range(30):
        model(correlated(64))
    return model.eval()


def correlated(count):
    base = torch.randn(count, 2, 8, 8)
    return torch.cat([base, base.sum(1, keepdim=True)], 1)


def output_error(slim, model, images):
    with torch.no_grad():
        return float(F.mse_loss(slim(images), model(images)))


def test_both_forms_bring_the_outputs_nearer_on_images_not_seen(trained):
    images, unseen = [correlated(64) for _ in range(4)], correlated(128)
    graph = cw.trace(trained, images[0])
    selection = graph.select(macs=0.5)
    plain = cw.recovery.recalibrate(graph.slim(selection), images)
    grams = gather(trained, graph.structure, images)
    closed = compensate_from_grams(graph.slim(selection), trained, graph.structure, selection, grams)
    cw.recovery.recalibrate(closed, images)
    sequential = compensate(graph.slim(selection), graph, selection, images)
    errors = [output_error(m.eval(), trained, unseen) for m in (plain, closed, sequential)]
    assert errors[1] < 0.8 * errors[0]
    assert errors[2] < 0.8 * errors[0]


def test_the_dense_model_is_untouched_even_where_the_candidate_shares_its_parameters(trained):
    images = [correlated(64)]
    graph = cw.trace(trained, images[0])
    before = {k: v.clone() for k, v in trained.state_dict().items()}
    selection = graph.select(macs=0.6)
    from channelwise.surgery.slim import slim_model

    slim = slim_model(trained, graph.structure, selection, share_untouched=True)
    compensate_from_grams(slim, trained, graph.structure, selection, gather(trained, graph.structure, images))
    compensate(slim, graph, selection, images)
    assert all(torch.equal(v, before[k]) for k, v in trained.state_dict().items())


def test_a_model_that_lost_nothing_keeps_its_outputs(trained):
    images = [correlated(64) for _ in range(4)]
    graph = cw.trace(trained, images[0])
    selection = Selection.full(graph.structure)
    slim = compensate(graph.slim(selection), graph, selection, images)
    with torch.no_grad():
        variance = float(trained(images[0]).var())
    assert output_error(slim, trained, images[0]) < 1e-2 * variance


def test_batches_that_do_not_fit_into_memory_are_left_out_and_said(trained, caplog):
    images = [correlated(32) for _ in range(3)]
    graph = cw.trace(trained, images[0])
    selection = graph.select(macs=0.6)
    compensate(graph.slim(selection), graph, selection, images, memory=1)
    assert "1 of 3 batches" in caplog.text


class Failing(Residual):
    def forward(self, x):
        if len(x) == 7:
            raise RuntimeError("seven")
        return super().forward(x)


def test_an_error_half_way_leaves_the_slim_model_as_it_was():
    torch.manual_seed(0)
    model = Failing().eval()
    graph = cw.trace(model, correlated(4))
    selection = graph.select(macs=0.6)
    slim = graph.slim(selection)
    before = {k: v.clone() for k, v in slim.state_dict().items()}
    with pytest.raises(RuntimeError, match="seven"):
        compensate(slim, graph, selection, [correlated(32), correlated(7)])
    assert all(torch.equal(v, before[k]) for k, v in slim.state_dict().items())


class Wandering(nn.Module):
    """Calls its layers in an order that depends on the images."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.left, self.right = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        order = (self.left, self.right) if float(x.detach().mean()) > 0 else (self.right, self.left)
        y = self.first(x).relu()
        for layer in order:
            y = layer(y).relu()
        return self.last(y)


def test_batches_that_take_different_paths_are_refused_by_name():
    torch.manual_seed(0)
    model = Wandering().eval()
    images = torch.rand(8, 3, 5, 5)
    graph = cw.trace(model, images)
    selection = graph.select(macs=0.6)
    with pytest.raises(InvalidArgumentError, match="Wandering"):
        compensate(graph.slim(selection), graph, selection, [images, -images])


def test_a_shared_layer_keeps_its_weights():
    torch.manual_seed(0)
    shared = nn.Conv2d(8, 8, 1)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), shared, nn.ReLU(), shared, nn.ReLU(), nn.Conv2d(8, 4, 1)
    ).eval()
    images = torch.randn(16, 3, 5, 5)
    graph = cw.trace(model, images)
    selection = graph.select(macs=0.6)
    slim = graph.slim(selection)
    before = slim[2].weight.clone()
    compensate(slim, graph, selection, [images])
    assert torch.equal(slim[2].weight, before)
