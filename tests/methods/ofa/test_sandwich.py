"""The sandwich rule: the largest, the smallest, random ones; the same on all processes, gradients exchanged once."""

from __future__ import annotations

import copy
import json
import os
import random
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from channelwise.errors import InvalidArgumentError
from channelwise.methods.ofa import OFAPruner, sandwich
from tests.methods.ofa.supernets import INPUTS, TARGETS, small, supernet


def grads(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_the_largest_the_smallest_and_random_ones() -> None:
    pruner, model = supernet()
    space = pruner.search_space
    seen = []
    for subnet, setting in sandwich(pruner, model, n_random=3, step=0):
        assert subnet is model
        seen.append(space.values(setting).tolist())
        assert model.first[0].out_channels == space.counts(space.values(setting))["first.0"]
    assert seen[:2] == [space.maximum.tolist(), space.minimum.tolist()]
    assert len(seen) == 5
    assert len({tuple(values) for values in seen}) > 2


@pytest.mark.parametrize(("n", "count"), [(0, 2), (2, 4), (2.0, 4)])
def test_as_many_random_ones_as_asked_for(n: Any, count: int) -> None:
    pruner, model = supernet()
    assert len(list(sandwich(pruner, model, n_random=n))) == count


@pytest.mark.parametrize("n", [-1, 1.5, "2", None, True])
def test_a_count_that_is_none_is_refused(n: Any) -> None:
    pruner, model = supernet()
    with pytest.raises(InvalidArgumentError, match="n_random"):
        list(sandwich(pruner, model, n_random=n))


def test_a_model_that_is_no_supernet_is_refused() -> None:
    pruner, _ = supernet()
    with pytest.raises(InvalidArgumentError, match="supernet"):
        list(sandwich(pruner, small()))


def test_the_step_alone_decides_which_random_subnets() -> None:
    pruner, model = supernet()
    steps = [[setting for _, setting in sandwich(pruner, model, step=i)] for i in range(4)]
    random.seed(1)
    other, twin = supernet()
    assert [[setting for _, setting in sandwich(other, twin, step=i)] for i in range(4)] == steps
    assert steps[1][2:] != steps[2][2:]
    assert steps[1][2] != steps[1][3]


def test_gradients_of_the_subnets_add_up() -> None:
    pruner, model = supernet()
    model.eval()
    loss = nn.CrossEntropyLoss()
    settings = []
    for subnet, setting in sandwich(pruner, model, step=3):
        settings.append(setting)
        loss(subnet(INPUTS), TARGETS).backward()
    together = grads(model)
    total = {name: torch.zeros_like(grad) for name, grad in together.items()}
    for setting in settings:
        model.zero_grad()
        loss(pruner.set_subnet(model, setting)(INPUTS), TARGETS).backward()
        for name, grad in grads(model).items():
            total[name] += grad
    assert len(total) == len(list(model.parameters()))
    for name, grad in total.items():
        torch.testing.assert_close(together[name], grad, msg=name)
    # One sum of losses, one backward pass: the same.
    model.zero_grad()
    sum(loss(pruner.set_subnet(model, setting)(INPUTS), TARGETS) for setting in settings).backward()
    for name, grad in grads(model).items():
        torch.testing.assert_close(together[name], grad, msg=name)


STEPS = 2


def train(pruner: OFAPruner, model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> dict[str, Any]:
    """Two steps of the rule; returns what to compare: settings, gradients of the first step, weights afterwards."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    settings, first = [], {}
    for _ in range(STEPS):
        optimizer.zero_grad()
        for subnet, setting in sandwich(pruner, model):
            settings.append(json.dumps(setting))
            nn.functional.cross_entropy(subnet(inputs), targets).backward()
        first = first or grads(model)
        nn.utils.clip_grad_value_(model.parameters(), 0.5)
        optimizer.step()
    return {"settings": settings, "grads": first, "state": model.state_dict()}


def work(rank: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    random.seed(100 + rank)
    half = slice(2 * rank, 2 * rank + 2)
    found = {}
    for norm in NORMS:
        pruner, model = build(norm)
        # What one process evaluates alone must not shift the subnets of the training.
        if rank == 0 and model.training:
            pruner.sample_subnet(model.eval(), "random")
            pruner.sample_subnet(model.train(), "random", seed=0)
        wrapped = DistributedDataParallel(model)
        wrapped.train(model.training)
        exchanged = [0]

        def count(state, bucket, exchanged=exchanged):  # type: ignore[no-untyped-def]
            exchanged[0] += bucket.is_last()
            return default_hooks.allreduce_hook(None, bucket)

        wrapped.register_comm_hook(None, count)
        found[norm] = {**train(pruner, wrapped, INPUTS[half], TARGETS[half]), "exchanged": exchanged[0]}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


NORMS = ("none", "eval")


def build(norm: str) -> tuple[OFAPruner, nn.Module]:
    pruner, model = supernet(small(norm=norm == "eval", kernel=7))
    return pruner, model.train(norm == "none")


@pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")
def test_two_processes_with_half_the_batch_train_like_one_with_all_of_it(tmp_path: Path) -> None:
    mp.spawn(work, (str(tmp_path),), nprocs=2)
    both = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for norm in NORMS:
        first, second = (found[norm] for found in both)
        assert first["settings"] == second["settings"]
        assert first["exchanged"] == second["exchanged"] == STEPS
        pruner, model = build(norm)
        settings = iter([json.loads(text) for text in first["settings"]])
        alone = train(_Replayed(pruner, settings), model, INPUTS, TARGETS)  # type: ignore[arg-type]
        for theirs in (first, second):
            for what in ("grads", "state"):
                for name, value in alone[what].items():
                    error = float((theirs[what][f"module.{name}"] - value).abs().max())
                    assert error < 1e-6 * max(1.0, float(value.abs().max())), f"{what} of {name} differ by {error:.1e}"


class _Replayed:
    """A pruner whose subnets are given."""

    def __init__(self, pruner: OFAPruner, settings: Any) -> None:
        self.pruner, self.settings = pruner, settings

    def sample_subnet(self, model: nn.Module, mode: str, *, seed: int | None = None) -> Any:
        setting = next(self.settings)
        return self.pruner.set_subnet(model, setting), setting


def test_a_deep_copy_takes_part_with_the_pruner_that_built_it() -> None:
    pruner, model = supernet()
    twin = copy.deepcopy(model)
    assert len(list(sandwich(pruner, twin))) == 4
