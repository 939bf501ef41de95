"""Everything people do around a training loop works on a supernet."""

from __future__ import annotations

import copy
import io
import pickle
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from channelwise.methods.ofa import OFAPruner, sandwich
from tests.methods.ofa.supernets import INPUTS, TARGETS, outputs, small, supernet


def loss_of(model: nn.Module, inputs: Tensor = INPUTS) -> Tensor:
    return F.cross_entropy(model(inputs).float(), TARGETS)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def train(pruner: OFAPruner, model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    losses = []
    model.train()
    for step in steps:
        optimizer.zero_grad()
        for subnet, _ in sandwich(pruner, model, step=step):
            loss = loss_of(subnet)
            loss.backward()
            losses.append(loss.item())
        nn.utils.clip_grad_value_(model.parameters(), 1.0)
        optimizer.step()
    return losses


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam], ids=["sgd", "adam"])
def test_all_subnets_learn(make: Any) -> None:
    pruner, model = supernet()
    rate = {"lr": 0.1, "momentum": 0.9} if make is torch.optim.SGD else {"lr": 1e-2}
    losses = train(pruner, model, make(model.parameters(), **rate), range(25))
    for which in range(3):
        assert losses[-4 + which] < 0.5 * losses[which]


def test_a_narrow_step_leaves_everything_idle_as_it_was() -> None:
    pruner, model = supernet(auto_add_excludes=False)
    before = copy.deepcopy(model.state_dict())
    _, setting = pruner.sample_subnet(model.train(), "min")
    loss_of(model).backward()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.step()
    after = model.state_dict()
    static = pruner.get_static_subnet(model, setting)[0]
    n = static.first[0].out_channels
    assert torch.equal(before["first.0.weight"][n:], after["first.0.weight"][n:])
    assert not torch.equal(before["first.0.weight"][:n], after["first.0.weight"][:n])
    assert not model.first[0].weight.grad[n:].any()
    for name, tensor in after.items():
        if tensor.dim():
            changed = int((tensor != before[name]).sum())
            # The rest of a kernel learns through its matrix, whose rows all follow from the active ones.
            kernel = name.startswith("depthwise.0") or name.endswith("_matrix")
            assert kernel or changed <= static.state_dict()[name].numel(), name


def test_gradient_clipping_sees_all_parameters() -> None:
    pruner, model = supernet()
    pruner.sample_subnet(model, "min")
    (100 * loss_of(model)).backward()
    nn.utils.clip_grad_value_(model.parameters(), 0.01)
    assert all(float(g.abs().max()) <= 0.01 for g in gradients(model).values())
    assert float(nn.utils.clip_grad_norm_(model.parameters(), 1e-3)) > 1e-3


def test_autocast() -> None:
    pruner, model = supernet()
    for mode in ("max", "min", "random"):
        pruner.sample_subnet(model, mode)  # type: ignore[arg-type]
        model.train().zero_grad()
        loss_of(model).backward()
        exact = gradients(model)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            output = model(INPUTS)
            assert output.dtype == torch.bfloat16
            loss = F.cross_entropy(output.float(), TARGETS)
        loss.backward()
        found = gradients(model)
        assert found.keys() == exact.keys()
        for name, grad in found.items():
            assert grad.dtype == torch.float32
            assert not grad[exact[name] == 0].abs().gt(1e-3).any()
        total = torch.cat([g.flatten() for g in exact.values()])
        half = torch.cat([g.flatten() for g in found.values()])
        assert F.cosine_similarity(total, half, dim=0) > 0.9


def test_half_precision_parameters() -> None:
    pruner, model = supernet()
    model.to(torch.bfloat16)
    _, setting = pruner.sample_subnet(model, "min")
    static = pruner.get_static_subnet(model, setting)[0]
    assert torch.equal(outputs(model, INPUTS.bfloat16()), outputs(static, INPUTS.bfloat16()))


def test_channels_last() -> None:
    pruner, model = supernet()
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    x = INPUTS.contiguous(memory_format=torch.channels_last)
    for seed in range(3):
        _, setting = pruner.sample_subnet(model, seed=seed)
        pruner.set_subnet(last, setting)
        torch.testing.assert_close(outputs(last, x), outputs(model))
        static = pruner.get_static_subnet(last, setting)[0]
        weight = static.first[0].weight
        assert weight.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(outputs(static, x), outputs(last, x), rtol=0, atol=0)
        loss_of(copy.deepcopy(last).train(), x).backward()


class Checkpointed(nn.Module):
    """Recomputes its blocks in the backward pass, one with a parameter of its own."""

    class Block(nn.Module):
        def __init__(self, into: int, out: int) -> None:
            super().__init__()
            self.conv, self.scale = nn.Conv2d(into, out, 3, padding=1), nn.Parameter(torch.rand(out, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).relu() * self.scale

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Linear(16, 5)
        self.a, self.b = self.Block(8, 16), self.Block(16, 16)
        self.reentrant: bool | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in (self.a, self.b):
            x = block(x) if self.reentrant is None else checkpoint(block, x, use_reentrant=self.reentrant)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant: bool) -> None:
    pruner, model = supernet(Checkpointed(), auto_add_excludes=False)
    for seed in range(3):
        pruner.sample_subnet(model, seed=seed)
        found = []
        for use in (None, reentrant):
            model.reentrant = use
            model.zero_grad()
            loss_of(model).backward()
            found.append(gradients(model))
        for name, grad in found[0].items():
            torch.testing.assert_close(found[1][name], grad, msg=name)


class Scaled(nn.Module):
    """Layers of every dynamic kind, one with a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), Checkpointed.Block(16, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.norm(self.a(x)).relu()).mean((2, 3)))


@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
@pytest.mark.parametrize("make", [small, Scaled])
def test_compiled_subnets(make: Any, backend: str) -> None:
    torch._dynamo.reset()
    pruner, model = supernet(make(), auto_add_excludes=False)
    compiled = torch.compile(model, backend=backend)
    for train_mode in (False, True):
        for mode in ("max", "min", "max", "random"):
            twin = copy.deepcopy(model).train(train_mode)
            _, setting = pruner.sample_subnet(compiled, mode, seed=1 if mode == "random" else None)  # type: ignore[arg-type]
            pruner.set_subnet(twin, setting)
            compiled.train(train_mode)
            model.zero_grad()
            loss, expected = loss_of(compiled), loss_of(twin)
            torch.testing.assert_close(loss, expected)
            loss.backward()
            twin.zero_grad()
            expected.backward()
            theirs = gradients(twin)
            for name, grad in gradients(model).items():
                torch.testing.assert_close(grad, theirs[name], rtol=1e-4, atol=1e-6, msg=name)
            for (name, buffer), other in zip(model.named_buffers(), twin.buffers(), strict=True):
                torch.testing.assert_close(buffer, other, msg=name)


def test_moving_averages() -> None:
    pruner, model = supernet()
    twin = copy.deepcopy(model)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    average.update_parameters(model)
    average.update_parameters(model)
    for (name, p), before in zip(average.module.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, before + 1, msg=name)
    for ema in (average, twin):
        _, setting = pruner.sample_subnet(ema, "min")
        static = pruner.get_static_subnet(ema, setting)[0]
        assert torch.equal(outputs(ema), outputs(static))
    assert model.first[0].out_channels == 24


@pytest.mark.parametrize("mode", ["max", "min"])
def test_pickling_keeps_the_active_subnet(mode: Any) -> None:
    pruner, model = supernet()
    pruner.sample_subnet(model, mode)
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(outputs(again), outputs(model))
    _, setting = pruner.sample_subnet(again, "random", seed=2)
    pruner.set_subnet(model, setting)
    assert torch.equal(outputs(again), outputs(model))


def test_training_goes_on_from_a_checkpoint() -> None:
    def start() -> tuple[OFAPruner, nn.Module, torch.optim.Optimizer]:
        pruner, model = supernet()
        return pruner, model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    pruner, model, optimizer = start()
    whole = train(pruner, model, optimizer, range(6))
    pruner, model, optimizer = start()
    losses = train(pruner, model, optimizer, range(3))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    random.seed(99)
    pruner, model, optimizer = start()
    state = torch.load(file)
    assert not any(model.load_state_dict(state["model"]))
    optimizer.load_state_dict(state["optimizer"])
    assert losses + train(pruner, model, optimizer, range(3, 6)) == whole


def test_a_checkpoint_of_a_narrow_supernet_is_the_whole_one() -> None:
    pruner, model = supernet()
    full = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    pruner.sample_subnet(model, "min")
    assert {name: tuple(t.shape) for name, t in model.state_dict().items()} == full
    assert sum(p.numel() for p in model.parameters()) > sum(p.numel() for p in small().parameters())


def test_data_parallel_runs_the_active_subnet() -> None:
    pruner, model = supernet()
    wrapped = nn.DataParallel(model)
    for subnet, setting in sandwich(pruner, wrapped):
        loss_of(subnet).backward()
        assert torch.equal(outputs(wrapped), outputs(pruner.get_static_subnet(model, setting)[0]))
        wrapped.train()
    assert all(p.grad is not None for p in model.parameters())


def test_distillation_from_the_original() -> None:
    teacher = small()
    pruner, model = supernet(teacher)
    target = outputs(teacher).softmax(1)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses: list[float] = []
    for step in range(20):
        optimizer.zero_grad()
        for subnet, _ in sandwich(pruner, model, step=step):
            loss = F.kl_div(subnet(INPUTS).log_softmax(1), target, reduction="batchmean")
            loss.backward()
            losses.append(loss.item())
        optimizer.step()
    assert sum(losses[-4:]) < sum(losses[:4])
    assert not any(p.grad is not None for p in teacher.parameters())


def test_frozen_parameters_stay_frozen() -> None:
    model = small()
    for p in model.first.parameters():
        p.requires_grad_(False)
    pruner, net = supernet(model)
    assert not any(p.requires_grad for p in net.first.parameters())
    pruner.sample_subnet(net, "min")
    loss_of(net).backward()
    assert all(p.grad is None for p in net.first.parameters())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu() -> None:
    pruner, model = supernet()
    model.cuda()
    for seed in range(3):
        _, setting = pruner.sample_subnet(model, seed=seed)
        static = pruner.get_static_subnet(model, setting)[0]
        x = INPUTS.cuda()
        torch.testing.assert_close(outputs(model, x), outputs(static, x), rtol=1e-5, atol=1e-6)
        model.train()
        scaler = torch.amp.GradScaler("cuda")
        with torch.autocast("cuda", torch.float16):
            loss = F.cross_entropy(model(x), TARGETS.cuda())
        scaler.scale(loss).backward()
        assert all(p.grad is not None for p in model.parameters())
