"""What must hold for every random network and every selection on it."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

import channelwise
from channelwise.inputs.tree import tensors_in
from channelwise.surgery import slim_state_dict
from channelwise.testing import OracleReport, check_oracle
from channelwise.testing.selections import only
from channelwise.testing.values import distance
from tests.random_networks.network import BATCH, CHANNELS, Plan, RandomNetwork
from tests.random_networks.selections import Choice


def example_input(plan: Plan) -> torch.Tensor:
    """An input of the network of a plan, the same at every call."""
    return torch.randn(BATCH, CHANNELS, *plan.size, generator=torch.Generator().manual_seed(0))


def check(plan: Plan, choice: Choice) -> OracleReport:
    """The oracle, and what it does not ask: sparse models in training, and files. A failure tells a story.

    In some of these networks no output depends on what is pruned.
    """
    network = RandomNetwork(plan).eval()
    if any(block.einsum for block in network.blocks):
        # The flop counter would miss its products, which the analytic MACs rightly count.
        choice = replace(choice, least=2)
    try:
        report = check_oracle(network, example_input(plan), select=choice, seed=choice.seed, telling=False)
        check_sparse(report, plan)
        if choice.seed == 0:  # a disk is slow
            check_files(report)
    except Exception as error:
        text = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
        raise AssertionError(f"{network.story()}\n{choice}\n{text}") from error
    return report


def check_sparse(report: OracleReport, plan: Plan) -> None:
    """A sparse model learns with its removed channels at zero: what is cut out of it afterwards computes the same."""
    graph, x = report.graph, example_input(plan).double()
    selection = only(graph.structure, report.selection, {group.name for group in graph.groups if group.exact})
    sparse = graph.sparse(selection)
    if not step(copy.deepcopy(graph.model), x):
        return
    assert step(sparse, x), "the dense model can be trained, the sparse one cannot"
    slim = graph.slim(selection)
    slim.load_state_dict(slim_state_dict(sparse.state_dict(), graph.structure, selection))
    with torch.no_grad():
        ours, theirs = (tensors_in(network.eval()(x.clone()), attributes=True) for network in (slim, sparse))
    error = distance(ours, theirs)
    assert error < 1e-7, f"after a training step the sparse model and what is cut out of it differ by {error:.2e}"


def step(model: nn.Module, x: torch.Tensor) -> bool:
    """One SGD step with momentum; False for a model that cannot be trained."""
    parameters = [p for p in model.train().parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-3, momentum=0.9)
    try:
        loss = sum(t.square().mean() for t in tensors_in(model(x.clone()), attributes=True))
        loss.backward()  # type: ignore[union-attr]
    except RuntimeError:
        return False
    optimizer.step()
    return all(bool(p.isfinite().all()) for p in parameters)


def check_files(report: OracleReport) -> None:
    """A slim model is read back from its file into a fresh model."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slim.safetensors"
        channelwise.save(report.slim, path)
        loaded = channelwise.load(copy.deepcopy(report.graph.model), path)
    ours, theirs = loaded.state_dict(), report.slim.state_dict()
    assert list(ours) == list(theirs), "the keys of a saved model changed"
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), f"{name} of a saved model changed"
