"""What an evaluation function may return, and what it is told otherwise."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from channelwise.errors import EvaluationError
from channelwise.evaluate.scores import as_score


@pytest.mark.parametrize(
    "value",
    [
        0.5,
        Fraction(1, 2),
        np.float32(0.5),
        np.array(0.5),
        np.array([[0.5]]),
        torch.tensor(0.5),
        torch.tensor([0.5], dtype=torch.bfloat16),
        torch.tensor(0.5, requires_grad=True),
    ],
)
def test_one_number_of_any_kind_is_a_score(value: Any) -> None:
    assert as_score(value) == 0.5


@pytest.mark.parametrize("value", [-3, np.int64(-3), torch.tensor(-3)])
def test_whole_and_negative_numbers_are_scores(value: Any) -> None:
    assert as_score(value) == -3.0


class Meter:
    avg = 0.5


class Metric:
    def compute(self) -> float:
        return 0.5


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "returned None.*`return accuracy`"),
        (Meter(), "the meter object Meter; .*`return meter.avg`"),
        (Metric(), "the metric object Metric; .*`return metric.compute"),
        (float("nan"), "returned nan.*finite"),
        (torch.tensor(float("inf")), "returned inf.*finite"),
        (-np.inf, "returned -inf.*finite"),
        pytest.param(10**400, "returned a number too large for a float.*finite", id="large"),
        (Fraction(-(10**400)), "returned a number too large for a float.*finite"),
        (np.array(10**400, object), "returned a number too large for a float.*finite"),
        (torch.ones(2, 3), r"a tensor of shape \(2, 3\).*mean"),
        (torch.ones(0), r"a tensor of shape \(0,\)"),
        (np.ones(4), r"a NumPy array of shape \(4,\)"),
        (torch.tensor(1j), "complex64"),
        ((0.5, 0.9), "a tuple of 2.*`return top1`"),
        ({"top1": 0.5}, "top1"),
        ("0.5", "'0.5'"),
        (True, "True"),
        (torch.tensor(True), "torch.bool"),
    ],
)
def test_anything_else_is_refused_with_what_to_return(value: Any, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        as_score(value)
