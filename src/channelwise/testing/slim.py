"""What must hold for slim models besides their outputs: sizes, costs, state dicts, a step of training."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from channelwise.api import ChannelGraph
from channelwise.inputs.example import number_of_samples
from channelwise.inputs.tree import tensors_in
from channelwise.selection import Selection
from channelwise.surgery import clone_module, masked_model, slim_state_dict, sparse_state_dict
from channelwise.testing.values import equal, shape_of
from channelwise.tracing.macs import formulas_for_torch


def check_state_dicts(model: nn.Module, graph: ChannelGraph, selection: Selection) -> None:
    """Assert that state dicts convert both ways between the slim and the masked model."""
    structure = graph.structure
    slim = graph.slim(selection).state_dict()
    masked = masked_model(model, structure, selection).state_dict()
    for what, got, want in (
        ("slim_state_dict", slim_state_dict(masked, structure, selection), slim),
        ("sparse_state_dict", sparse_state_dict(slim, structure, selection, model.state_dict()), masked),
    ):
        assert list(got) == list(want), f"{what}: keys differ: {sorted(set(got) ^ set(want)) or 'their order'}"
        for name, value in want.items():
            same = equal(got[name], value) if isinstance(value, Tensor) else got[name] == value
            assert same, f"{what}: {name} differs ({shape_of(got[name])} against {shape_of(value)})"


def check_costs(graph: ChannelGraph, selection: Selection, args: Any, kwargs: Any, *, macs: bool = True) -> None:
    """Assert that the analytic MACs and parameters are those of the slim model."""
    slim = graph.slim(selection).eval()
    params = sum(p.numel() for p in slim.parameters())
    said = graph.params(selection)
    assert said == params, f"graph.params says {said}, the slim model has {params}"
    if not macs:
        return
    try:
        # Under no_grad the counter stumbles over expanded parameters.
        counted = _counted(slim, args, kwargs, gradients=True)
    except RuntimeError:
        # Some code writes in place where autograd forbids it.
        counted = _counted(slim, args, kwargs, gradients=False)
    analytic = graph.macs(selection)
    assert abs(analytic - counted) <= 1e-9 * max(counted, 1), (
        f"graph.macs says {analytic:.1f}, the flop counter {counted:.1f} on the slim model"
    )


def _counted(model: nn.Module, args: Any, kwargs: Any, *, gradients: bool) -> float:
    """MACs of one sample by torch's flop counter, with formulas for the operators that it does not know."""
    counter = FlopCounterMode(display=False, custom_mapping=formulas_for_torch())
    with unfused_attention(), torch.set_grad_enabled(gradients), counter:
        model(*copy.deepcopy(args), **copy.deepcopy(kwargs))
    return counter.get_total_flops() / 2 / max(number_of_samples(args, kwargs), 1)


def check_sizes(graph: ChannelGraph, slim: nn.Module, selection: Selection) -> None:
    """Assert that every slim tensor has the shape that the structure promises."""
    counts = selection.counts()
    state = {**dict(slim.named_parameters(remove_duplicate=False)), **dict(slim.named_buffers())}
    for name, sizes in graph.structure.tensor_sizes.items():
        promised = tuple(size(counts) for size in sizes)
        assert shape_of(state[name]) == promised, f"{name} has shape {shape_of(state[name])}, promised {promised}"


def check_training(model: nn.Module, slim: nn.Module, args: Any, kwargs: Any) -> bool:
    """One SGD step in train mode; False when the dense model cannot do that either."""
    try:
        if not _step(clone_module(model, {}), args, kwargs):
            return False
    except Exception:
        return False
    model = clone_module(slim, {})
    assert _step(model, args, kwargs), "the dense model can be trained, the slim one cannot"
    for name, parameter in model.named_parameters():
        finite = parameter.grad is None or bool(parameter.grad.isfinite().all())
        assert finite, f"the gradient of {name} is not finite after one step of the slim model"
        assert bool(parameter.isfinite().all()), f"{name} is not finite after one step of the slim model"
    return True


def _step(model: nn.Module, args: Any, kwargs: Any) -> bool:
    parameters = [p for p in model.train().parameters() if p.requires_grad]
    if not parameters:
        return False
    optimizer = torch.optim.SGD(parameters, lr=1e-3)
    outputs = tensors_in(model(*copy.deepcopy(args), **copy.deepcopy(kwargs)), attributes=True)
    loss = sum((t.square().mean() for t in outputs if t.is_floating_point()), torch.zeros(()))
    if not loss.requires_grad:
        return False
    loss.backward()
    optimizer.step()
    return True


@contextmanager
def unfused_attention() -> Iterator[None]:
    """The flop counter knows no fused encoder layers."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # The counter of older versions does not know the kernel that fuses attention on a CPU.
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
