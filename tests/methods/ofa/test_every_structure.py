"""Every small network that the engine is tested with becomes a supernet whose subnets are right."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

import channelwise as cw
from channelwise.errors import NothingToPruneError
from channelwise.example_inputs import as_arguments, varied
from channelwise.graph.verify import difference, run_once
from channelwise.methods.ofa.building import checked_supernet, search_space
from channelwise.methods.ofa.layers import Dynamic
from channelwise.methods.ofa.supernet import Supernet, bare
from channelwise.testing import randomise
from channelwise.testing.values import cast, distance
from tests.graph.networks import NETWORKS as REGISTERED
from tests.graph.networks import Network

NETWORKS = [n for n in REGISTERED.values() if n.kwargs is None]


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: n.name)
def test_subnets_are_the_pruned_original(network: Network) -> None:
    model = network.model().double()
    randomise(model)
    inputs = cast(network.inputs(), torch.float64)
    graph = cw.trace(model, inputs)
    try:
        space = search_space(graph, [0.5, 1], 1, None, ends=False, kernels=False)
    except NothingToPruneError:
        pytest.skip("nothing can be pruned")
    supernet, dynamic = checked_supernet(graph, space, "consumer_l2", inputs)
    args, kwargs = as_arguments(inputs)
    args, kwargs = varied(args), varied(kwargs)
    assert distance(run_once(dynamic, args, kwargs), run_once(model, args, kwargs)) < 1e-8
    fixed = {c.name for c in supernet.space.choices if "does not adapt" in c.fixed}
    assert not fixed, f"{fixed} of {network.name} stay: {[c.fixed for c in supernet.space.choices if c.name in fixed]}"
    for values in (space.minimum, space.random(random.Random(0))):
        check_subnet(supernet, dynamic, values, args, kwargs)


def check_subnet(supernet: Supernet, model: nn.Module, values: np.ndarray, args: object, kwargs: object) -> None:
    """The dynamic subnet is the extracted one bit for bit, with the costs that the space says."""
    supernet.activate(model, values)
    outputs = run_once(model, args, kwargs)  # type: ignore[arg-type]
    static = supernet.extract(model, values)
    assert not any(isinstance(module, Dynamic) for module in static.modules())
    extracted = run_once(static, args, kwargs)  # type: ignore[arg-type]
    assert difference(outputs, extracted) is None
    assert distance(outputs, extracted) == 0
    assert sum(p.numel() for p in static.parameters()) == supernet.space.params(values)
    assert bare(model) is model
