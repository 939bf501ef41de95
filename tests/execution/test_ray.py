"""Evaluations on a Ray cluster: a local one of real processes, started once for this file."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from channelwise.errors import EvaluationError, InvalidArgumentError
from channelwise.methods import IterativePruningRunner, OneStepPruningRunner
from tests.execution.contract import WorkersContract
from tests.execution.jobs import LoaderSum, Square
from tests.methods import searched
from tests.methods.small import INPUTS, closeness, evaluations, net

ray = pytest.importorskip("ray")
from channelwise.execution.ray import RayCluster, Slot, connect, slots  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        assert connect("ray", workers=3)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def two_workers(local_ray: None) -> Iterator[RayCluster]:
    cluster = RayCluster(Square(), device=CPU, workers=2)
    yield cluster
    cluster.close()
    assert ray.is_initialized()


class TestRayCluster(WorkersContract):
    @pytest.fixture
    def executor(self, two_workers: RayCluster) -> RayCluster:
        return two_workers


def test_analysis_with_a_lambda_on_ray_has_the_scores_of_one_in_process(local_ray: None, tmp_path: Path) -> None:
    def results(folder: str, **options: Any) -> dict[tuple[Any, Any], float]:
        runner = IterativePruningRunner(net(), INPUTS, folder=tmp_path / folder, quiet=True)
        runner.ana(lambda model: closeness(model), **options)
        lines = map(json.loads, (tmp_path / folder / "Net.sens").read_text().splitlines())
        return {(r.get("group"), r.get("kept")): r["score"] for r in lines if r.get("kind") == "evaluation"}

    expected = results("here")
    assert len(expected) == evaluations()
    assert results("ray", executor="ray", workers=1) == expected


def test_cluster_that_the_program_is_connected_to_stays_connected_and_no_other_is_used(local_ray: None) -> None:
    with pytest.raises(InvalidArgumentError, match=r"executor='elsewhere:6379'.*connected .* already.*ray.shutdown"):
        RayCluster(Square(), device=CPU, address="elsewhere:6379")
    RayCluster(Square(), device=CPU, address=ray.get_runtime_context().gcs_address, workers=1).close()
    assert ray.is_initialized()


@pytest.mark.parametrize("prefix", ["ray://", ""])
def test_cluster_that_cannot_be_reached_is_named(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"{prefix}127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(InvalidArgumentError, match=f"cluster at {address} cannot be reached: .*refused"):
            connect(address)
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(InvalidArgumentError, match=f"executor='ray' with RAY_ADDRESS={address}: "):
            connect("ray")


def test_job_that_cannot_be_sent_is_refused_with_what_to_do() -> None:
    with pytest.raises(InvalidArgumentError, match=r"cannot be sent.*a generator can be read only once"):
        RayCluster(LoaderSum(number for number in range(3)), device=CPU)
    with socket.socket() as held, pytest.raises(InvalidArgumentError, match=r"Make inside eval_fn.*connections"):
        RayCluster(LoaderSum(held), device=CPU)


def node(alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"Alive": alive, "Resources": resources}


@pytest.mark.parametrize(
    ("nodes", "options", "expected"),
    [
        ([node(CPU=4), node(CPU=2), node(alive=False, CPU=8)], {}, (6, Slot(0, 1, 1))),
        ([node(CPU=4)], {"most": 3}, (3, Slot(0, 1, 1))),
        ([node(CPU=4)], {"workers": 2}, (2, Slot(0, 1, 1))),
        ([node(CPU=4, GPU=1), node(CPU=20, GPU=3)], {}, (4, Slot(1, 0, 6))),
        ([node(CPU=4, GPU=1)], {"workers": 3, "most": 9}, (3, Slot(1, 0, 4))),
    ],
)
def test_a_worker_per_gpu_or_else_per_cpu(nodes: Any, options: dict[str, int], expected: tuple[int, Slot]) -> None:
    assert slots(nodes, **options) == expected


def test_workers_share_the_cores_of_a_cluster_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("channelwise.execution.ray.usable_cores", lambda: 8)
    assert slots([node(CPU=8)], workers=2, alone=True) == (2, Slot(0, 1, 4))


def test_cluster_without_resources_is_an_error() -> None:
    with pytest.raises(EvaluationError, match="neither GPUs nor CPUs"):
        slots([node(memory=1.0)])


def test_search_on_ray_has_the_scores_of_one_in_process(local_ray: None, tmp_path: Path) -> None:
    def scores(folder: str, **options: Any) -> dict[int, float | None]:
        runner = OneStepPruningRunner(searched.wide(), searched.INPUTS, folder=tmp_path / folder, quiet=True)
        runner.search(
            eval_fn=lambda model: searched.nearness(model), loader=searched.LOADER, num_subnet=6, strategy="random",
            **options,
        )  # fmt: skip
        return {trial.number: trial.score for trial in runner.results().complete}

    expected = scores("here")
    assert len(expected) == 6
    assert scores("ray", executor="ray", workers=2) == expected
