"""Removed slots of a sparse model are exactly zero, whatever training does."""

from __future__ import annotations

import copy
import io
import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.fusion import fuse_conv_bn_eval

import channelwise
from channelwise.errors import InvalidArgumentError
from channelwise.selection import Selection
from channelwise.structure import Structure
from channelwise.surgery.cuts import cut_tensors
from channelwise.surgery.guard import SparseGuard
from channelwise.surgery.slicing import removed_mask, slim_state_dict
from channelwise.surgery.slim import attach_sparse_state_dict, slim_model, sparse_state_dict
from channelwise.surgery.sparse import masked_model, sparse_model
from channelwise.tensors import named_tensors
from tests.surgery.small_networks import (
    CONV_NET_KEPT,
    ConvNet,
    conv_net,
    group,
    image,
    select,
    structure,
)


def sparse_net() -> tuple[ConvNet, Structure, Selection]:
    model, found = conv_net()
    selection = select(found, **CONV_NET_KEPT)
    return sparse_model(model, found, selection), found, selection


def assert_zeros(model: nn.Module) -> None:
    _, found = conv_net()
    tensors = named_tensors(model)
    for name, cut in cut_tensors(found, select(found, **CONV_NET_KEPT)).tensors.items():
        if tensors[name].is_floating_point():
            lost = tensors[name].detach()[removed_mask(cut).to(tensors[name].device).expand(tensors[name].shape)]
            assert lost.numel()
            assert (lost == 0).all(), f"{name}: removed slots hold {lost.unique().tolist()[:4]}"


def loss_of(model: nn.Module, parameters: nn.Module | None = None) -> torch.Tensor:
    """A loss with a term on the weights: without one the gradients of removed slots are often zero by themselves."""
    weights = [(p - 1).square().sum() for p in (parameters or model).parameters()]
    x = image().to(weights[0].device, weights[0].dtype)
    return model(x).float().square().mean() + 0.01 * torch.stack(weights).sum()


def train(model: nn.Module, parameters: nn.Module | None = None, steps: int = 3) -> None:
    optimizer = torch.optim.SGD((parameters or model).parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model, parameters).backward()
        optimizer.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_forward_equals_slim_in_both_modes() -> None:
    model, found = conv_net()
    selection = select(found, **CONV_NET_KEPT)
    sparse, slim = (f(model, found, selection).double() for f in (sparse_model, slim_model))
    for mode in (True, False):
        x = image().double()
        torch.testing.assert_close(sparse.train(mode)(x), slim.train(mode)(x))


def test_gradients_of_kept_slots_are_those_of_the_masked_model() -> None:
    model, found = conv_net()
    selection = select(found, **CONV_NET_KEPT)
    sparse, masked = sparse_model(model, found, selection), masked_model(model, found, selection)
    x = image()
    for m in (sparse, masked):
        m(x).sum().backward()
    for name, cut in cut_tensors(found, selection).tensors.items():
        if name in dict(model.named_parameters()):
            expected = masked.get_parameter(name).grad.masked_fill(removed_mask(cut), 0)
            assert torch.equal(sparse.get_parameter(name).grad, expected), name


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
        lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1, amsgrad=True),
        lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.5),
    ],
)
def test_zeros_survive_optimizers(make: Callable[..., torch.optim.Optimizer]) -> None:
    model, _, _ = sparse_net()
    optimizer = make(model.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
    assert_zeros(model)


def test_infinite_gradients_of_removed_slots_become_zero() -> None:
    model, _, _ = sparse_net()
    (model.conv1.weight * torch.full((8, 3, 3, 3), torch.inf)).sum().backward()
    assert (model.conv1.weight.grad[1] == 0).all()
    assert model.conv1.weight.grad[0].isinf().all()


def test_zeros_survive_amp_with_a_grad_scaler() -> None:
    model, _, _ = sparse_net()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1)
    for _ in range(6):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert_zeros(model)


@pytest.mark.parametrize("clip", [nn.utils.clip_grad_norm_, nn.utils.clip_grad_value_])
def test_zeros_survive_gradient_clipping(clip: Callable[..., object]) -> None:
    model, _, _ = sparse_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        loss_of(model).backward()
        clip(model.parameters(), 0.1)
        optimizer.step()
    assert_zeros(model)


def test_zeros_survive_ema_copies() -> None:
    model, _, _ = sparse_net()
    ema = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    for _ in range(3):
        train(model, steps=1)
        ema.update_parameters(model)
    assert_zeros(ema.module)


def _saved_whole(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "torch.save": _saved_whole,
}


@pytest.mark.parametrize("how", COPIES)
def test_zeros_survive_training_a_copy(how: str) -> None:
    model, _, _ = sparse_net()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        twin = COPIES[how](model)
    train(twin)
    assert_zeros(twin)


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_is_guarded_before_its_first_forward(how: str) -> None:
    model, _, _ = sparse_net()
    twin = COPIES[how](model)
    # Calling the layers by hand never runs the model's own forward pre-hook.
    twin.conv1(image()).sum().backward()
    assert (twin.conv1.weight.grad[1] == 0).all()


@pytest.mark.parametrize("how", COPIES)
def test_copies_are_independent(how: str) -> None:
    model, _, _ = sparse_net()
    twin = COPIES[how](model)
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in model.parameters()}
    guards = [m.__dict__["_channelwise_guard"] for m in (model, twin)]
    hooks = [next(iter(m._forward_pre_hooks.values())) for m in (model, twin)]
    assert all(g is h for g, h in zip(guards, hooks, strict=True))
    assert guards[0] is not guards[1]
    train(twin)
    assert len(twin.conv1.weight._backward_hooks) == 1


def test_data_parallel_replicas_do_not_disturb_the_guard() -> None:
    model, _, _ = sparse_net()
    train(nn.DataParallel(model))
    assert_zeros(model)
    # What nn.parallel.replicate makes on each GPU.
    replica = model._replicate_for_data_parallel()
    replica._parameters = {}
    replica.conv1 = model.conv1
    guard = model.__dict__["_channelwise_guard"]
    guard(replica, ())
    assert guard._root == id(model)


def test_zeros_survive_ddp(tmp_path: Path) -> None:
    model, _, _ = sparse_net()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        train(nn.parallel.DistributedDataParallel(model))
    finally:
        torch.distributed.destroy_process_group()
    assert_zeros(model)


def test_state_dict_has_the_keys_of_the_original_and_loads_both_ways() -> None:
    model, _ = conv_net()
    sparse, _, _ = sparse_net()
    assert list(sparse.state_dict()) == list(model.state_dict())
    model.load_state_dict(sparse.state_dict(), strict=True)
    sparse.load_state_dict(model.state_dict(), strict=True)


@pytest.mark.parametrize("assign", [False, True])
def test_loaded_dense_weights_lose_their_removed_slots(assign: bool) -> None:
    dense, _ = conv_net()
    sparse, _, _ = sparse_net()
    sparse.load_state_dict(dense.state_dict(), assign=assign)
    assert_zeros(sparse)
    assert (sparse.conv1.weight[0] != 0).all()
    train(sparse)
    assert_zeros(sparse)


def test_loading_through_a_wrapper_zeroes_too() -> None:
    dense, _ = conv_net()
    sparse, _, _ = sparse_net()
    nn.Sequential(sparse).load_state_dict({f"0.{name}": t for name, t in dense.state_dict().items()})
    assert_zeros(sparse)


def test_a_replaced_parameter_is_caught_at_the_next_forward() -> None:
    sparse, _, _ = sparse_net()
    old = sparse.conv2.weight
    sparse.conv2.weight = nn.Parameter(torch.ones(6, 8, 3, 3))
    train(sparse)
    assert_zeros(sparse)
    assert not old._backward_hooks


def test_a_replaced_layer_is_caught_at_the_next_forward() -> None:
    sparse, found, selection = sparse_net()
    sparse.conv2 = nn.Conv2d(8, 6, 3, padding=1)
    train(sparse)
    assert_is_slim(sparse, found, selection)
    assert_zeros(sparse)


CHANGES: dict[str, Callable[[ConvNet], object]] = {
    "conv2.parametrizations.weight.original": lambda m: nn.utils.parametrizations.orthogonal(m.conv2),
    "conv1.weight_orig": lambda m: prune.identity(m.conv1, "weight"),
    "conv2.weight_orig": lambda m: prune.random_unstructured(m.conv2, "weight", 0.5),
    "conv1.bias": lambda m: setattr(m, "conv1", fuse_conv_bn_eval(m.conv1.eval(), m.bn.eval())),
    "bn.base.weight": lambda m: setattr(m, "bn", nn.Sequential(OrderedDict(base=m.bn))),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("trained", [False, True])
def test_tensors_that_the_trace_does_not_know_are_refused_by_name(name: str, trained: bool) -> None:
    sparse, found, selection = sparse_net()
    CHANGES[name](sparse)
    if trained:
        train(sparse)
    with pytest.raises(InvalidArgumentError, match=rf"^{re.escape(name)} is no tensor of the network"):
        sparse.slim_state_dict()
    with pytest.raises(InvalidArgumentError, match=rf"^{re.escape(name)} is no tensor of the network"):
        slim_state_dict(sparse.state_dict(), found, selection)


@pytest.mark.parametrize("put", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_parametrisations_that_were_folded_since_are_refused_by_name(put: Callable[[nn.Module], object]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    put(model[2])
    graph = channelwise.trace(model, torch.rand(1, 3, 8, 8))
    sparse = graph.sparse(graph.select(sparsity=0.5))
    parametrize.remove_parametrizations(sparse[2], "weight")
    with pytest.raises(InvalidArgumentError, match=r"^2\.weight is no tensor of the network"):
        sparse.slim_state_dict()


def test_a_pruning_mask_that_is_made_permanent_leaves_a_slim_model() -> None:
    sparse, found, selection = sparse_net()
    prune.random_unstructured(sparse.conv2, "weight", 0.5)
    train(sparse)
    prune.remove(sparse.conv2, "weight")
    assert_is_slim(sparse, found, selection)


def test_a_parameter_replaced_in_a_copy_is_caught_at_its_first_forward() -> None:
    twin = copy.deepcopy(sparse_net()[0])
    twin.conv2.weight = nn.Parameter(torch.ones(6, 8, 3, 3))
    twin(image())
    assert_zeros(twin)
    train(twin)
    assert_zeros(twin)


def test_a_parameter_of_another_shape_is_left_to_the_user() -> None:
    sparse, _, _ = sparse_net()
    sparse.conv2 = nn.Conv2d(8, 7, 3, padding=1)
    sparse.fc = nn.Linear(7 * 16, 4)
    sparse.load_state_dict(sparse.state_dict())
    assert sparse(image()).shape == (2, 4)
    assert (sparse.conv2.weight != 0).all()


def test_frozen_parameters_can_be_trained_later() -> None:
    model, found = conv_net()
    sparse = sparse_model(model.requires_grad_(False), found, select(found, **CONV_NET_KEPT))
    assert not any(p.requires_grad for p in sparse.parameters())
    sparse.requires_grad_(True)
    train(sparse)
    assert_zeros(sparse)


def test_moving_and_casting_keeps_zeros() -> None:
    model, _, _ = sparse_net()
    model.to(torch.float64).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loss_of(model).backward()
    optimizer.step()
    assert_zeros(model)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_zeros_survive_on_a_gpu_after_moving() -> None:
    model, _, _ = sparse_net()
    model.cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loss_of(model).backward()
    optimizer.step()
    assert_zeros(model)


def test_sparse_gradients_are_masked() -> None:
    model = nn.Sequential(nn.Embedding(5, 4, sparse=True))
    found = structure(model, group("g", ("0.weight", 1, np.arange(4))))
    sparse = sparse_model(model, found, select(found, g=[0, 2]))
    sparse(torch.tensor([1, 1, 3])).sum().backward()
    assert sparse[0].weight.grad.to_dense()[1].tolist() == [2, 0, 2, 0]
    torch.optim.SparseAdam(sparse.parameters()).step()
    assert (sparse[0].weight[:, [1, 3]] == 0).all()


def test_compiled_models_keep_zeros() -> None:
    model, _, _ = sparse_net()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    train(compiled, model)
    assert_zeros(model)


def test_a_copy_compiles_before_its_first_forward() -> None:
    model = copy.deepcopy(sparse_net()[0])
    train(torch.compile(model, backend="eager", fullgraph=True), model)
    assert_zeros(model)


@pytest.mark.parametrize("how", ["itself", *COPIES])
def test_slim_state_dict_follows_the_model(how: str) -> None:
    sparse, found, selection = sparse_net()
    model = COPIES.get(how, lambda m: m)(sparse)
    train(model)
    x = image()
    slim = slim_model(conv_net()[0], found, selection)
    slim.load_state_dict(model.slim_state_dict(), strict=True)
    torch.testing.assert_close(slim.eval()(x), model.eval()(x))


def test_state_dicts_go_into_a_plain_dict() -> None:
    sparse, found, selection = sparse_net()
    slim = attach_sparse_state_dict(slim_model(conv_net()[0], found, selection), found, selection)
    for write in (sparse.slim_state_dict, slim.sparse_state_dict):
        given: dict[str, torch.Tensor] = {}
        assert write(given, "p.") is given
        assert list(given) == [f"p.{name}" for name in sparse.state_dict()]


def test_slim_and_sparse_state_dicts_are_inverse() -> None:
    sparse, found, selection = sparse_net()
    back = sparse_state_dict(sparse.slim_state_dict(), found, selection)
    assert all(torch.equal(tensor, back[name]) for name, tensor in sparse.state_dict().items())


def test_inexact_groups_are_refused_by_name() -> None:
    model, found = conv_net()
    two = np.arange(6)
    inexact = group("conv2", ("conv2.weight", 0, two), exact=False, because="layer norm counts all channels")
    found = Structure(found.tensors, found.tensor_sizes, (found.groups[0], inexact), (), ())
    with pytest.raises(InvalidArgumentError, match=r"conv2 \(layer norm counts all channels\).*slim model, or exclude"):
        sparse_model(model, found, select(found, conv2=[0]))
    sparse_model(model, found, select(found, conv1=[0]))


def test_the_original_gets_neither_hooks_nor_zeros() -> None:
    model, found = conv_net()
    before = copy.deepcopy(model.state_dict())
    sparse_model(model, found, select(found, **CONV_NET_KEPT))
    assert not model._forward_pre_hooks
    assert model.conv1.weight._backward_hooks is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_sparsifying_a_sparse_model_again_replaces_the_guard() -> None:
    sparse, found, _ = sparse_net()
    again = sparse_model(sparse, found, select(found, conv1=[0, 2], conv2=[1]))
    hooks = (again._forward_pre_hooks, again._load_state_dict_post_hooks, again._state_dict_pre_hooks)
    assert [len(h) for h in hooks] == [1, 1, 1]
    train(again)
    assert_zeros(again)
    assert (again.conv1.weight[5] == 0).all()


def test_masking_touches_no_whole_numbers() -> None:
    model = nn.Module()
    model.register_buffer("order", torch.arange(1, 5))
    found = structure(model, group("g", ("order", 0, np.arange(4))))
    assert masked_model(model, found, select(found, g=[0])).order.tolist() == [1, 2, 3, 4]


def test_an_evaluation_fills_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sparse, _, _ = sparse_net()
    sparse.eval()
    seen: list[str] = []
    monkeypatch.setattr(SparseGuard, "_fill", lambda self, name, tensor: seen.append(name))
    with torch.no_grad():
        sparse(image())
        del seen[:]
        sparse(image())
    assert not seen


class Langevin(torch.optim.Optimizer):
    """Gradient descent with noise; ``old``: as optimizers were written before ``no_grad``."""

    def __init__(self, parameters: Iterable[nn.Parameter], old: bool = False) -> None:
        super().__init__(parameters, {"old": old})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for options in self.param_groups:
            for p in options["params"]:
                (p.data if options["old"] else p).sub_(p.grad, alpha=0.01).add_(torch.randn_like(p), alpha=0.1)


@pytest.mark.parametrize("old", [False, True])
def test_zeros_survive_an_optimizer_that_adds_noise(old: bool) -> None:
    model, found, selection = sparse_net()
    optimizer = Langevin(model.parameters(), old)
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
        assert_zeros(model)
    assert_is_slim(model, found, selection)


def _noise(model: nn.Module) -> None:
    with torch.no_grad():
        for tensor in _floating(model):
            tensor.add_(torch.rand_like(tensor))


def _noise_through_data(model: nn.Module) -> None:
    for tensor in _floating(model):
        tensor.data.add_(torch.rand_like(tensor))


def _copy_of_dense_weights(model: nn.Module) -> None:
    with torch.no_grad():
        for tensor, other in zip(_floating(model), _floating(conv_net()[0]), strict=True):
            tensor.copy_(other)


def _floating(model: nn.Module) -> list[torch.Tensor]:
    return [tensor for tensor in named_tensors(model).values() if tensor.is_floating_point()]


def assert_is_slim(model: nn.Module, found: Structure, selection: Selection) -> None:
    """The state dict is taken first: a forward pass would zero what was written."""
    slim = slim_model(conv_net()[0], found, selection)
    slim.load_state_dict(model.slim_state_dict(), strict=True)
    x = image()
    torch.testing.assert_close(slim.eval()(x), model.eval()(x))


WRITERS = [_noise, _noise_through_data, _copy_of_dense_weights]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("how", ["itself", "averaged", *COPIES])
def test_what_is_written_by_hand_while_training_is_zero_before_it_is_used(
    how: str, write: Callable[[nn.Module], None]
) -> None:
    sparse, found, selection = sparse_net()
    copies = {**COPIES, "itself": lambda m: m, "averaged": lambda m: torch.optim.swa_utils.AveragedModel(m).module}
    model = copies[how](sparse)
    for _ in range(2):
        loss_of(model).backward()
        write(model)
        # Once where the next pass trains, once where it evaluates.
        assert_is_slim(model, found, selection)
        assert_zeros(model)
        model.train()


@pytest.mark.parametrize("write", WRITERS)
def test_a_state_dict_holds_zeros_whatever_was_written(write: Callable[[nn.Module], None]) -> None:
    sparse, _, _ = sparse_net()
    write(sparse)
    dense, _ = conv_net()
    dense.load_state_dict(sparse.state_dict())
    assert_zeros(dense)


@pytest.mark.parametrize("write", [_noise, _copy_of_dense_weights])
def test_what_is_written_between_evaluations_is_zero_before_it_is_used(write: Callable[[nn.Module], None]) -> None:
    sparse, _, _ = sparse_net()
    with torch.no_grad():
        sparse.eval()(image())
        write(sparse)
        sparse(image())
    assert_zeros(sparse)


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("value", [0.25, float("nan")])
def test_values_that_the_model_may_have_used_unseen_are_told(value: float, saved: bool) -> None:
    sparse, found, selection = sparse_net()
    with torch.no_grad():
        sparse.eval()(image())
        sparse.conv2.weight.data[0] = -value
        sparse(image())
    if saved:
        sparse.state_dict()  # an ordinary checkpoint between scoring and pruning
    with pytest.raises(InvalidArgumentError, match=rf"removed channels of conv2.weight hold values up to {value:.3g}"):
        sparse.slim_state_dict()
    sparse.load_state_dict(sparse.state_dict())
    assert_is_slim(sparse, found, selection)


def test_values_that_a_compiled_model_may_have_used_are_told() -> None:
    sparse, found, selection = sparse_net()
    compiled = torch.compile(sparse, backend="eager", fullgraph=True)
    compiled(image())
    assert_is_slim(sparse, found, selection)
    compiled(image())
    _noise(sparse)
    compiled(image())
    with pytest.raises(InvalidArgumentError, match=r"removed channels of .* hold values up to"):
        sparse.slim_state_dict()


def test_the_step_of_another_optimizer_leaves_a_backward_pass_alone() -> None:
    sparse, _, _ = sparse_net()
    loss = loss_of(sparse)
    other = nn.Linear(2, 2)
    optimizer = torch.optim.SGD([*other.parameters(), *sparse.parameters()], lr=0.1)
    other(torch.ones(1, 2)).sum().backward()
    optimizer.step()  # the sparse model has no gradients yet
    loss.backward()


def test_a_backward_pass_may_come_after_the_next_forward_pass() -> None:
    sparse, _, _ = sparse_net()
    losses = [loss_of(sparse.eval()) for _ in range(2)]
    for loss in losses:
        loss.backward()


def test_parameters_of_several_models_run_under_vmap() -> None:
    sparse, _, _ = sparse_net()
    stacked = {name: torch.stack([tensor.detach() + 1] * 3) for name, tensor in named_tensors(sparse).items()}
    x = image()
    outputs = torch.func.vmap(lambda tensors: torch.func.functional_call(sparse.eval(), tensors, (x,)))(stacked)
    assert outputs.shape[0] == 3
    assert_zeros(sparse)


def test_a_model_that_lost_nothing_has_a_slim_state_dict() -> None:
    model, found = conv_net()
    sparse = sparse_model(model, found, Selection.full(found)).eval()
    with torch.no_grad():
        sparse(image())
        sparse.conv2.weight.data.fill_(1)
    assert sparse.slim_state_dict().keys() == model.state_dict().keys()
