"""Norms of sparse models count the kept channels only: as the slim model, through training, copies and compilation."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import channelwise as cw
from channelwise.api import ChannelGraph
from channelwise.selection import Selection
from channelwise.surgery import clone_module
from channelwise.surgery.cuts import cut_tensors
from channelwise.surgery.slicing import removed_mask


class ConvNeXt(nn.Module):
    """A stem with a norm, and a block: depthwise convolution, layer norm on channels last, MLP, layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 8, 2, 2), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.scale, self.head = nn.Parameter(torch.full((8,), 0.5)), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.down(nn.functional.gelu(self.up(y)))
        return self.head((x + y.permute(0, 3, 1, 2)).mean((2, 3)))


class GroupNormResNet(nn.Module):
    """A residual block with group norms of several channels a group."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 3, padding=1), nn.GroupNorm(3, 12)
        self.conv1, self.norm1 = nn.Conv2d(12, 8, 3, padding=1, bias=False), nn.GroupNorm(2, 8)
        self.conv2, self.norm2 = nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.GroupNorm(3, 12, affine=False)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = (x + self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))).relu()
        return self.head(x.mean((2, 3)))


def images() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def made(network: Callable[[], nn.Module] = ConvNeXt) -> tuple[ChannelGraph, Selection, nn.Module]:
    """The traced network in float64, half of every group, and the sparse model."""
    torch.manual_seed(0)
    graph = cw.trace(network().double(), images())
    assert graph.groups
    assert not any(group.slim_only for group in graph.groups)
    selection = graph.select(sparsity=0.5)
    return graph, selection, graph.sparse(selection)


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("network", [ConvNeXt, GroupNormResNet])
def test_sparse_equals_slim_in_both_modes(network: Callable[[], nn.Module]) -> None:
    graph, selection, sparse = made(network)
    slim = graph.slim(selection)
    for mode in (True, False):
        same(sparse.train(mode)(images()), slim.train(mode)(images()))
    assert (sparse(images()) - graph.model(images())).abs().max() > 1e-3


@pytest.mark.parametrize("network", [ConvNeXt, GroupNormResNet])
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.01),
    ],
    ids=["SGD", "AdamW"],
)
def test_removed_slots_stay_zero_and_slim_equals_sparse_after_training(
    network: Callable[[], nn.Module], optimizer: Callable[..., torch.optim.Optimizer]
) -> None:
    graph, selection, sparse = made(network)
    steps = optimizer(sparse.parameters())
    before = copy.deepcopy(sparse.state_dict())
    for step in range(5):
        loss = (sparse.train()(images()) - step).square().mean()
        # Gradients of the weights themselves, which are not zero where channels were removed.
        loss = loss + 1e-3 * torch.stack([(p - 1).square().sum() for p in sparse.parameters()]).sum()
        steps.zero_grad()
        loss.backward()
        steps.step()
    state = sparse.state_dict()
    assert all(not torch.equal(state[name], tensor) for name, tensor in before.items())
    for name, cut in cut_tensors(graph.structure, selection).tensors.items():
        lost = state[name][removed_mask(cut).expand(state[name].shape)]
        assert lost.numel()
        assert (lost == 0).all(), name
    slim = graph.slim(selection)
    slim.load_state_dict(sparse.slim_state_dict(), strict=True)
    same(slim.eval()(images()), sparse.eval()(images()))


def test_gradients_of_kept_slots_are_those_of_the_slim_model() -> None:
    graph, selection, sparse = made()
    slim = graph.slim(selection)
    for model in (sparse, slim):
        model(images()).square().sum().backward()
    gradients = {name: p.grad for name, p in sparse.named_parameters()}
    for name, wide in cw.surgery.slim_state_dict(gradients, graph.structure, selection).items():
        same(wide, slim.get_parameter(name).grad)


def _saved_whole(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def _replica(model: nn.Module) -> nn.Module:
    """What nn.parallel.replicate makes on each GPU: parameters are plain attributes there."""
    replicas = {m: m._replicate_for_data_parallel() for m in model.modules()}
    for module, replica in replicas.items():
        for name, part in module._modules.items():
            replica._modules[name] = replicas[part]
        replica._parameters = {}
        for name, parameter in module._parameters.items():
            setattr(replica, name, None if parameter is None else parameter * 1)
    return replicas[model]


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "torch.save": _saved_whole,
    "replica": _replica,
    "DataParallel": nn.DataParallel,
    # torch 2.6 breaks the graph at the hook, later versions do not.
    "compile": lambda m: torch.compile(m, backend="eager"),
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("network", [ConvNeXt, GroupNormResNet])
def test_copies_count_the_kept_channels_of_their_own_weights(how: str, network: Callable[[], nn.Module]) -> None:
    graph, selection, sparse = made(network)
    expected = graph.slim(selection)(images())
    twin = COPIES[how](sparse)
    with torch.no_grad():
        if how in ("deepcopy", "pickle", "torch.save"):
            sparse.norm.weight.zero_()
    same(twin(images()), expected)


def test_classes_keys_and_parameters_are_those_of_the_original() -> None:
    graph, _, sparse = made()
    assert list(sparse.state_dict()) == list(graph.model.state_dict())
    assert [type(m) for m in sparse.modules()] == [type(m) for m in graph.model.modules()]
    assert [(n, p.shape) for n, p in sparse.named_parameters()] == [
        (n, p.shape) for n, p in graph.model.named_parameters()
    ]
    assert not graph.model.norm._forward_hooks


def test_hooks_of_the_user_see_what_the_norm_counts() -> None:
    graph, selection, _ = made()
    seen: list[tuple[Tensor, Tensor]] = []
    graph.model.norm.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    graph.sparse(selection)(images())
    ((given, result),) = seen
    kept = torch.tensor(selection.kept["stem"])
    same(result[..., kept], graph.slim(selection).norm(given[..., kept]))
    assert result.count_nonzero() == result[..., kept].count_nonzero()


def test_changed_attributes_of_a_norm_are_heeded() -> None:
    graph, selection, sparse = made()
    slim = graph.slim(selection)
    sparse.norm.eps = slim.norm.eps = 10.0
    same(sparse(images()), slim(images()))


def test_clones_of_a_sparse_model_are_plain() -> None:
    _, _, sparse = made()
    norm = clone_module(sparse, {}).norm
    assert not norm._forward_hooks
    assert not norm._forward_hooks_with_kwargs
    assert not [name for name in norm.__dict__ if "channelwise" in name]


def test_sparsifying_again_counts_what_is_left() -> None:
    graph, _, sparse = made()
    fewer = graph.select(sparsity=0.75)
    again = cw.surgery.sparse_model(sparse, graph.structure, fewer)
    assert len(again.norm._forward_hooks) == 1
    same(again(images()), cw.surgery.slim_model(sparse, graph.structure, fewer)(images()))


def test_a_layer_of_another_width_is_left_to_the_user() -> None:
    _, _, sparse = made()
    sparse.norm.normalized_shape, sparse.norm.weight, sparse.norm.bias = (6,), None, None
    assert sparse.norm(torch.ones(2, 6, dtype=torch.float64)).shape == (2, 6)


def test_a_sparse_model_made_in_inference_mode_can_be_trained() -> None:
    graph, selection, _ = made()
    with torch.inference_mode():
        sparse = graph.sparse(selection)
        sparse(images())
    sparse(images()).sum().backward()
    assert sparse.stem.weight.grad.abs().sum() > 0


def test_results_keep_their_type_and_memory_layout() -> None:
    _, _, sparse = made(GroupNormResNet)
    sparse.float()
    x = torch.randn(2, 12, 4, 4).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        found, plain = sparse.norm(x.bfloat16()), clone_module(sparse.norm, {})(x.bfloat16())
    assert found.dtype == plain.dtype
    assert found.stride() == plain.stride()


def test_indices_follow_the_model_to_another_device() -> None:
    _, _, sparse = made()
    assert sparse.to("meta")(images().to("meta")).device.type == "meta"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_norms_count_on_a_gpu_after_moving() -> None:
    graph, selection, sparse = made()
    expected = graph.slim(selection)(images())
    same(sparse.cuda()(images().cuda()).cpu(), expected)
