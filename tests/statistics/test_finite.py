"""Calibration images and layers whose statistics are no numbers are named, and nothing runs for ever over them."""

import math

import pytest
import torch
from torch import nn

import channelwise as cw
from channelwise.errors import EvaluationError
from channelwise.recovery import compensate, recalibrate
from channelwise.statistics import gather
from channelwise.statistics.moments import damped_factor


def network(norm=False):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8) if norm else nn.ReLU(), nn.ReLU(), nn.Conv2d(8, 6, 3)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(6, 4, 1)).eval()


def images(value=None):
    batches = [torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    if value is not None:
        batches[1][2, 0, 0, 0] = value
    return batches


def gathered(net, graph, batches):
    gather(net, graph.structure, batches)


def compensated(net, graph, batches):
    selection = graph.select(sparsity=0.5)
    slim = graph.slim(selection)
    before = {name: t.clone() for name, t in slim.state_dict().items()}
    try:
        compensate(slim, graph, selection, batches)
    finally:
        assert all(torch.equal(before[name], t) for name, t in slim.state_dict().items())


@pytest.mark.parametrize("use", [gathered, compensated])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_images_that_are_no_numbers_are_named(use, value):
    net = network()
    graph = cw.trace(net, torch.randn(1, 3, 8, 8))
    with pytest.raises(EvaluationError, match=r"Batch 1 of the calibration images .* 1 of its 4 samples.* sample 2\."):
        use(net, graph, images(value))


@pytest.mark.parametrize("use", [gathered, compensated])
def test_images_too_large_for_statistics_are_named_with_the_layer(use):
    net = network()
    graph = cw.trace(net, torch.randn(1, 3, 8, 8))
    batches = images()
    batches[2] *= 1e30
    with pytest.raises(EvaluationError, match=r"The layer '\d' reads .* on batch 2 .*largest number is [\d.]+e\+30"):
        use(net, graph, batches)


def test_a_layer_behind_weights_that_are_no_numbers_is_named():
    net = network()
    graph = cw.trace(net, torch.randn(1, 3, 8, 8))
    with torch.no_grad():
        net[3].weight[0, 0, 0, 0] = math.nan
    with pytest.raises(EvaluationError, match=r"The layer '5' reads NaN.*are the weights finite"):
        gather(net, graph.structure, images())


def test_re_estimated_batch_norms_name_their_layer():
    with pytest.raises(EvaluationError, match="batch norm '1'"):
        recalibrate(network(norm=True), images(math.nan))


def test_a_search_with_a_bad_image_ends_with_its_number(tmp_path):
    graph = cw.trace(network(), torch.randn(1, 3, 8, 8))
    method = cw.OneStep(graph, cw.Repair(images(math.nan)), folder=tmp_path, quiet=True)
    with pytest.raises(EvaluationError, match="Batch 1 of the calibration images"):
        method.search(cw.Target(macs=0.5), cw.Evaluation(lambda model: 1.0), options=cw.SearchOptions(candidates=3))


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 1e308, 0.0])
def test_damping_ends_for_every_matrix(value):
    gram = torch.full((3, 3), value, dtype=torch.float64)
    damped_factor(gram, 1e-3)
