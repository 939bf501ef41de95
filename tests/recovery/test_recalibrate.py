"""Re-estimated batch-norm statistics are those of all inputs seen, and nothing else changes."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import channelwise as cw
from channelwise.errors import EvaluationError, InvalidArgumentError
from channelwise.recovery import batchnorm, recalibrate
from channelwise.recovery.batchnorm import mean_and_squares


class Net(nn.Module):
    """Two batch norms with a dropout between them."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.bn1 = norm(4)
        self.drop = nn.Dropout(0.9)
        self.conv2 = nn.Conv2d(4, 5, 3)
        self.bn2 = norm(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(self.drop(F.relu(self.bn1(self.conv1(x))))))


def batches(*sizes: int, scale: float = 1.0, offset: float = 0.0) -> list[Tensor]:
    """Batches whose means differ, so that the variance between batches counts."""
    return [torch.randn(n, 3, 8, 8) * scale + offset + i for i, n in enumerate(sizes)]


def seen_by(model: Net, loader: list[Tensor]) -> dict[str, Tensor]:
    """What each batch norm gets when it normalises with statistics of the batch, in float64: (C, values)."""
    model = copy.deepcopy(model).double().eval()
    seen: dict[str, list[Tensor]] = {"bn1": [], "bn2": []}
    with torch.no_grad():
        for x in loader:
            a = model.conv1(x.double())
            b = model.conv2(F.relu(F.batch_norm(a, None, None, model.bn1.weight, model.bn1.bias, True)))
            seen["bn1"].append(a)
            seen["bn2"].append(b)
    return {name: torch.cat([x.movedim(1, 0).flatten(1) for x in parts], 1) for name, parts in seen.items()}


def check(model: Net, seen: dict[str, Tensor], rtol: float = 1e-5) -> None:
    for name, x in seen.items():
        norm = model.get_submodule(name)
        scale = x.var(1).sqrt()
        torch.testing.assert_close(norm.running_mean.double() / scale, x.mean(1) / scale, rtol=rtol, atol=rtol)
        torch.testing.assert_close(norm.running_var.double(), x.var(1), rtol=rtol, atol=0.0)


def test_statistics_are_those_of_all_batches_as_if_they_were_one() -> None:
    model, loader = Net(), batches(8, 3, 16, 1)
    seen = seen_by(model, loader)
    assert recalibrate(model, loader) is model
    check(model, seen)


def test_only_as_many_batches_count_as_asked_for() -> None:
    model, loader = Net(), batches(8, 3, 16)
    seen = seen_by(model, loader[:2])
    recalibrate(model, loader, 2)
    check(model, seen)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_mean_far_from_zero_costs_no_precision(layout: torch.memory_format) -> None:
    norm = nn.BatchNorm2d(6)
    loader = [(torch.randn(32, 6, 12, 12) + 3000).contiguous(memory_format=layout) for _ in range(40)]
    recalibrate(norm, loader)
    x = torch.cat(loader).double().movedim(1, 0).flatten(1)
    torch.testing.assert_close(norm.running_var.double(), x.var(1), rtol=2e-6, atol=0.0)
    torch.testing.assert_close(norm.running_mean.double(), x.mean(1), rtol=1e-7, atol=0.0)


def test_moments_correct_the_rounding_of_the_mean() -> None:
    x = torch.randn(64, 8, 64, 64) + 1e5
    mean, squares = mean_and_squares(x)
    wide = x.double().movedim(1, 0).flatten(1)
    torch.testing.assert_close(mean, wide.mean(1), rtol=0.0, atol=1e-4)
    torch.testing.assert_close(squares.double(), wide.var(1, correction=0) * wide.shape[1], rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d], ids=["1d", "2d", "3d"])
def test_every_dimension_of_batch_norm(norm: type[nn.Module]) -> None:
    shapes = {nn.BatchNorm1d: [(6, 3), (2, 3)], nn.BatchNorm2d: [(4, 3, 5, 6)], nn.BatchNorm3d: [(2, 3, 4, 5, 6)]}
    loader = [torch.randn(shape) for shape in shapes[norm]]
    model: Any = recalibrate(norm(3), loader)
    x = torch.cat([b.movedim(1, 0).flatten(1) for b in loader], 1)
    torch.testing.assert_close(model.running_mean, x.mean(1))
    torch.testing.assert_close(model.running_var, x.var(1))


def test_nothing_but_the_statistics_changes() -> None:
    model = Net().train()
    model.bn1.momentum, model.bn2.momentum = None, 0.37
    model.bn2.eval()
    model.bn1.num_batches_tracked.fill_(11)
    model.bn2.weight.requires_grad_(False)
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    buffers = {name: id(b) for name, b in model.named_buffers()}
    grads = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    state = copy.deepcopy(model.state_dict())
    flags = [m.training for m in model.modules()]
    recalibrate(model, batches(4, 4))

    assert (model.bn1.momentum, model.bn2.momentum) == (None, 0.37)
    assert [m.training for m in model.modules()] == flags
    assert {name: id(b) for name, b in model.named_buffers()} == buffers
    assert not model.bn2.weight.requires_grad
    assert not any(m._forward_pre_hooks for m in model.modules())
    for name, p in model.named_parameters():
        assert (p.grad is None) == (grads[name] is None)
        assert p.grad is None or torch.equal(p.grad, grads[name])
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, state[k])}
    assert changed == {f"bn{i}.running_{kind}" for i in (1, 2) for kind in ("mean", "var")}


@pytest.mark.parametrize("training", [False, True])
def test_only_batch_norms_are_in_train_mode_and_gradients_are_off(training: bool) -> None:
    seen: list[bool] = []
    model = Net().train(training)

    def look(module: nn.Module, batch: Any) -> Any:
        seen.append(torch.is_grad_enabled())
        seen.extend(m.training for m in module.modules() if not isinstance(m, nn.BatchNorm2d))
        assert module.bn1.training
        assert module.bn2.training
        return module(batch)

    recalibrate(model, batches(4), forward_fn=look)
    assert not any(seen)


def test_an_error_half_way_leaves_the_old_statistics() -> None:
    model = Net().train()
    state = copy.deepcopy(model.state_dict())
    loader = [*batches(4, 4), torch.randn(2, 7, 8, 8)]
    with pytest.raises(RuntimeError, match="channels"):
        recalibrate(model, loader)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(m.training for m in model.modules())
    assert model.bn1.momentum == 0.1
    assert not model.bn1._forward_pre_hooks


def test_infinite_inputs_are_an_error_that_names_the_batch_norm() -> None:
    model = Net()
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(EvaluationError, match="'bn1'"):
        recalibrate(model, [*batches(4), torch.full((2, 3, 8, 8), float("nan")), *batches(4)])
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_a_batch_norm_called_twice_pools_both_inputs() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(5 * self.bn(x) + 1)

    loader = [torch.randn(6, 3) for _ in range(3)]
    second = [5 * F.batch_norm(x, None, None, training=True) + 1 for x in loader]
    model = recalibrate(Shared(), loader)
    x = torch.cat([*loader, *second])
    torch.testing.assert_close(model.bn.running_mean, x.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.bn.running_var, x.var(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_sums_are_not_kept_in_half_precision(dtype: torch.dtype) -> None:
    norm = nn.BatchNorm2d(4)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), norm)
    with torch.no_grad():
        model[0].weight.mul_(100)
    loader = [torch.randn(64, 3, 16, 16) * 100 + 30 for _ in range(4)]
    with torch.autocast("cpu", dtype=dtype):
        recalibrate(model, loader)
        with torch.no_grad():
            x = torch.cat([model[0](b) for b in loader])
    assert x.dtype == dtype
    assert norm.running_var.dtype == torch.float32
    assert norm.running_var.max() > torch.finfo(torch.float16).max
    torch.testing.assert_close(norm.running_mean.double(), x.double().mean((0, 2, 3)), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(
        norm.running_var.double(), x.double().movedim(1, 0).flatten(1).var(1), rtol=1e-5, atol=0.0
    )


def test_a_model_in_half_precision_keeps_its_type() -> None:
    norm = nn.BatchNorm2d(4).bfloat16()
    loader = [(torch.randn(64, 4, 16, 16) + 2).bfloat16() for _ in range(4)]
    recalibrate(norm, loader)
    assert norm.running_mean.dtype == torch.bfloat16
    assert torch.equal(norm.running_mean, torch.cat(loader).double().mean((0, 2, 3)).bfloat16())


def test_subclasses_and_sync_batch_norm_are_re_estimated() -> None:
    class Scaled(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(input=x) * 2

    loader = batches(8, 8)
    for norm in (nn.SyncBatchNorm, Scaled):
        model = Net(norm)
        x = seen_by(model, loader)["bn1"]
        recalibrate(model, loader)
        check(model, {"bn1": x})
        assert "forward" not in model.bn1.__dict__


def test_one_value_per_channel_counts_and_is_normalised_with_the_old_statistics() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(x.mean((2, 3), keepdim=True))

    model = Pooled()
    nn.init.constant_(model.bn.running_mean, 5.0)
    outputs = []
    loader = batches(1, 4, 1)

    def keep(m: nn.Module, x: Tensor) -> Tensor:
        outputs.append(m(x))
        return outputs[-1]

    recalibrate(model, loader, forward_fn=keep)
    x = torch.cat([b.mean((2, 3)) for b in loader])
    torch.testing.assert_close(model.bn.running_mean, x.mean(0))
    torch.testing.assert_close(model.bn.running_var, x.var(0))
    torch.testing.assert_close(outputs[2], F.batch_norm(x[-1:, :, None, None], torch.full((3,), 5.0), torch.ones(3)))
    with pytest.raises(InvalidArgumentError, match="'bn' saw a single value"):
        recalibrate(model, loader[:1])


def test_batch_norms_that_do_not_run_or_do_not_track_stay_as_they_are() -> None:
    class Branched(Net):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.BatchNorm2d(4)
            self.drop = nn.BatchNorm2d(4, track_running_stats=False)

    model, loader = Branched(), batches(8)
    nn.init.constant_(model.unused.running_mean, 7.0)
    recalibrate(model, loader)
    assert model.unused.running_mean.eq(7).all()
    assert model.unused.running_var.eq(1).all()
    assert model.drop.running_mean is None
    assert model.bn2.running_mean.isfinite().all()


def test_a_model_without_batch_norm_is_returned_and_that_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    batchnorm._say_once.cache_clear()
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4))
    with caplog.at_level(logging.INFO, "channelwise"):
        assert recalibrate(model, batches(2)) is model
        recalibrate(copy.deepcopy(model), batches(2))
    assert [r.message for r in caplog.records if "no batch norm" in r.message] == [
        "Sequential has no batch norm with running statistics: there is nothing to re-estimate."
    ]


def test_wrappers_may_stay_on() -> None:
    model, loader = Net(), batches(8, 4)
    seen = seen_by(model, loader)
    wrapped = nn.DataParallel(model)
    assert recalibrate(wrapped, loader) is wrapped
    check(model, seen)


def test_a_loader_that_yields_nothing_is_an_error_and_changes_nothing() -> None:
    model = Net()
    with pytest.raises(InvalidArgumentError, match="yields nothing"):
        recalibrate(model, [])
    assert model.bn1.running_var.eq(1).all()


def test_it_is_reached_from_the_package() -> None:
    assert cw.recovery.recalibrate is recalibrate


def test_beside_the_dense_model_nothing_changes_where_nothing_was_pruned() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4))
    with torch.no_grad():
        for norm in (model[1], model[4]):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    model.eval()
    graph = cw.trace(model, torch.randn(2, 3, 8, 8))
    full = graph.select(sparsity=0.0)
    batches = [torch.randn(6, 3, 8, 8) for _ in range(3)]
    slim = recalibrate(graph.slim(full), batches, graph=graph, selection=full)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(slim.state_dict()[name], value)
    part = graph.select(sparsity=0.5)
    kept = part.kept["0"]
    pruned = recalibrate(graph.slim(part), batches, graph=graph, selection=part)
    torch.testing.assert_close(pruned[1].running_mean, model[1].running_mean[kept])
    assert not torch.allclose(pruned[4].running_mean, model[4].running_mean)
    with pytest.raises(InvalidArgumentError, match="graph= and selection= together"):
        recalibrate(graph.slim(part), batches, graph=graph)
