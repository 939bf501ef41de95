"""Under torch.distributed all processes end with the statistics of all data, whatever share each had."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

import channelwise as cw
from channelwise.recovery import recalibrate

SHARES = (slice(0, 3), slice(3, 4))


def data() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 3, 6, 6, generator=generator) * (i + 1) + 10 * i for i, n in enumerate((8, 3, 5, 16))]


def build(norm: type[nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5))


def work(rank: int, folder: str, norm: type[nn.Module]) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    model: nn.Module = build(norm)
    if norm is nn.BatchNorm2d:
        model = nn.parallel.DistributedDataParallel(model)
    recalibrate(model, data()[SHARES[rank]])
    torch.save(model.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.SyncBatchNorm], ids=["ddp", "sync"])
def test_two_processes_give_what_one_gives_on_all_data(tmp_path: Path, norm: type[nn.Module]) -> None:
    expected = recalibrate(build(norm), data()).state_dict()
    mp.spawn(work, (str(tmp_path), norm), nprocs=2)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        found = {name.removeprefix("module."): value for name, value in found.items()}
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=f"{name} in process {rank}")


def beside() -> tuple[nn.Module, dict[str, object]]:
    graph = cw.trace(build(nn.BatchNorm2d).eval(), data()[0])
    selection = graph.select(sparsity=0.5)
    return graph.slim(selection), {"graph": graph, "selection": selection}


def work_beside(rank: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    slim, options = beside()
    torch.save(recalibrate(slim, data()[SHARES[rank]], **options).state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")
def test_two_processes_pair_with_the_dense_model_as_one_does(tmp_path: Path) -> None:
    slim, options = beside()
    expected = recalibrate(slim, data(), **options).state_dict()
    mp.spawn(work_beside, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        for name, value in torch.load(tmp_path / f"{rank}.pt").items():
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-4, msg=f"{name} in process {rank}")
