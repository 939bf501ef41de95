"""Evaluations in this process: order, errors, and the search for a device that the user's function works on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from channelwise.errors import EvaluationError
from channelwise.execution import Task
from channelwise.execution.inprocess import InProcess
from tests.execution.contract import ExecutorContract, tasks
from tests.execution.jobs import NotReady, Square

CPU, META = torch.device("cpu"), torch.device("meta")


class OnlyOn(Square):
    """Complains like PyTorch on all devices but one."""

    def __init__(self, device: torch.device) -> None:
        self.works_on = device
        self.prepared: list[torch.device] = []

    def prepare(self, device: torch.device) -> None:
        self.device = device
        self.prepared.append(device)

    def __call__(self, payload: Any) -> float:
        if self.device != self.works_on:
            raise RuntimeError("Expected all tensors to be on the same device, but found at least two devices")
        return super().__call__(payload)


class TestInProcess(ExecutorContract):
    @pytest.fixture
    def executor(self) -> InProcess:
        return InProcess(Square(), [CPU])


def test_results_come_in_order() -> None:
    assert [r.task.payload for r in InProcess(Square(), [CPU]).run(tasks(3, 1, 2))] == [3, 1, 2]


def test_job_that_cannot_be_prepared_is_an_error_of_the_run() -> None:
    with pytest.raises(EvaluationError, match="cannot start on cpu: ValueError: no room"):
        list(InProcess(NotReady(), [CPU]).run(tasks(1)))


def test_interrupt_is_not_a_failed_task() -> None:
    with pytest.raises(KeyboardInterrupt):
        list(InProcess(Square(), [CPU]).run(tasks("interrupt")))


def test_second_device_is_tried_when_tensors_are_on_the_wrong_one() -> None:
    job = OnlyOn(CPU)
    assert [r.score for r in InProcess(job, [META, CPU]).run([Task("a", 2), Task("b", 3)])] == [4, 9]
    assert job.prepared == [META, CPU]


def test_device_is_settled_by_the_first_success() -> None:
    job = OnlyOn(META)
    run = InProcess(job, [META, CPU]).run([Task("a", 2), Task("b", 3)])
    next(run)
    job.works_on = CPU
    assert "same device" in str(next(run).error)


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows what happens without CUDA")
def test_a_function_that_asks_for_a_missing_device_is_told_to_follow_the_model() -> None:
    class AsksForCuda(OnlyOn):
        def __call__(self, payload: object) -> float:
            return float(torch.zeros(1).cuda())

    (result,) = InProcess(AsksForCuda(CPU), [CPU]).run([Task("a", 1)])
    assert "eval_fn asks for a device that is not there" in str(result.error)
    assert "next(model.parameters()).device" in str(result.error)


def test_other_errors_do_not_move_the_model() -> None:
    job = OnlyOn(META)
    (result,) = InProcess(job, [META, CPU]).run([Task("a", "raise")])
    assert "KeyError" in str(result.error)
    assert job.prepared == [META]
