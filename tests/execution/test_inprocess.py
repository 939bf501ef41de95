"""Evaluations in this process: order, errors, and the search for a device that the user's function works on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from channelwise.errors import EvaluationError
from channelwise.execution import Task
from channelwise.execution.inprocess import InProcess, is_device_mismatch
from tests.execution.jobs import Square

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


def test_results_come_in_order_with_their_tasks() -> None:
    tasks = [Task(str(n), n) for n in range(4)]
    results = list(InProcess(Square(), [CPU]).run(tasks))
    assert [(r.task, r.score) for r in results] == [(t, t.payload**2) for t in tasks]


def test_error_names_the_task_and_chains_the_users_error() -> None:
    with pytest.raises(EvaluationError, match="Evaluating group 'a': eval_fn raised KeyError") as caught:
        list(InProcess(Square(), [CPU]).run([Task("group 'a'", "raise")]))
    assert isinstance(caught.value.__cause__, KeyError)


def test_bad_score_is_reported_with_the_task() -> None:
    with pytest.raises(EvaluationError, match="Evaluating the baseline: eval_fn returned None"):
        list(InProcess(Square(), [CPU]).run([Task("the baseline", "score")]))


def test_results_before_an_error_are_delivered() -> None:
    results = InProcess(Square(), [CPU]).run([Task("a", 3), Task("b", "raise")])
    assert next(results).score == 9


def test_second_device_is_tried_when_tensors_are_on_the_wrong_one() -> None:
    job = OnlyOn(CPU)
    assert [r.score for r in InProcess(job, [META, CPU]).run([Task("a", 2), Task("b", 3)])] == [4, 9]
    assert job.prepared == [META, CPU]


def test_device_is_settled_by_the_first_success() -> None:
    job = OnlyOn(META)
    run = InProcess(job, [META, CPU]).run([Task("a", 2), Task("b", 3)])
    next(run)
    job.works_on = CPU
    with pytest.raises(EvaluationError, match="same device"):
        next(run)


def test_other_errors_do_not_move_the_model() -> None:
    job = OnlyOn(META)
    with pytest.raises(EvaluationError, match="KeyError"):
        list(InProcess(job, [META, CPU]).run([Task("a", "raise")]))
    assert job.prepared == [META]


@pytest.mark.parametrize(
    "text",
    [
        "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!",
        "Input type (torch.cuda.FloatTensor) and weight type (torch.FloatTensor) should be the same",
        "Input type (torch.FloatTensor) and weight type (torch.cuda.FloatTensor) should be the same or input should be "
        "a MKLDNN tensor and weight is a dense tensor",
    ],
)
def test_pytorchs_device_complaints_are_known(text: str) -> None:
    assert is_device_mismatch(RuntimeError(text))
