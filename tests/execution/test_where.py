"""Which executor evaluations get."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from channelwise.errors import InvalidArgumentError
from channelwise.execution import Executor
from channelwise.execution.inprocess import InProcess
from channelwise.execution.where import Where
from channelwise.execution.workers import WorkerPool
from tests.execution.jobs import Local

CPU = torch.device("cpu")

Make = Callable[..., Executor]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Without CUDA, closing what was made."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    made: list[Executor] = []

    def make(most: int | None = None, **options: Any) -> Executor:
        made.append(Where(**options).place(CPU).start(Local(), most))
        return made[-1]

    yield make
    for executor in made:
        executor.close()


@pytest.mark.parametrize("options", [{}, {"gpus": ["0"]}, {"workers": 1}, {"workers": 4, "most": 1}])
def test_one_at_a_time_runs_in_this_process(make: Make, options: dict[str, Any]) -> None:
    executor = make(**options)
    assert isinstance(executor, InProcess)
    assert executor.capacity == 1


def test_several_run_in_worker_processes_but_not_more_than_there_are_tasks(make: Make) -> None:
    executor = make(workers=3, most=2)
    assert isinstance(executor, WorkerPool)
    assert executor.capacity == 2


def test_local_means_a_worker_process_even_if_it_is_one(make: Make) -> None:
    executor = make(executor="local")
    assert isinstance(executor, WorkerPool)
    assert executor.capacity == 1


@pytest.mark.parametrize("executor", ["cluster", "ray://head", "head:port", "", 3, "http://head:1", "ray://a/b:1"])
def test_what_is_no_executor_is_refused(executor: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"executor=.*'ray://head:10001' or 'head:6379'"):
        Where(executor=executor).place(CPU)


@pytest.mark.parametrize("executor", ["ray", "ray://head:10001", "192.168.1.2:6379", "[::1]:6379"])
def test_without_ray_the_way_to_install_it_is_told(executor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InvalidArgumentError, match=r"pip install 'channelwise\[ray\]'"):
        Where(executor=executor).place(CPU)


@pytest.mark.parametrize(("gpus", "workers"), [(None, None), (["0"], None), (["0", "1"], 2), ("0,1,7", 3)])
def test_on_ray_several_gpus_say_how_many_workers_there_are(gpus: Any, workers: int | None) -> None:
    # A single one is the default of `search`, whatever the cluster has.
    assert Where(gpus, executor="ray").place(CPU).workers == workers


@pytest.mark.parametrize("options", [{"gpus": ["x"]}, {"workers": 0}])
@pytest.mark.parametrize("executor", [None, "ray"])
def test_bad_numbers_are_refused_wherever_it_runs(options: dict[str, Any], executor: str | None) -> None:
    with pytest.raises(InvalidArgumentError, match=next(iter(options))):
        Where(executor=executor, **options).place(CPU)
