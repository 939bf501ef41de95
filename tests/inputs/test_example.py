"""Example inputs in all forms that a trace takes; others are refused with what is wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import channelwise
from channelwise.errors import InvalidArgumentError, TraceError
from tests.networks.resident import Resident, image, nothing_changes, resident


@pytest.mark.parametrize(
    "inputs",
    [
        (torch.randn(2, 3, 8, 8),),
        [torch.randn(2, 3, 8, 8)],
        torch.randn(2, 3, 8, 8),
    ],
    ids=["tuple", "list", "tensor"],
)
def test_inputs_may_be_a_tensor_a_tuple_or_a_list(inputs: Any) -> None:
    assert channelwise.trace(Resident(), inputs).groups


class TakesDict(nn.Module):
    """A model of one dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Resident()

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"out": self.net(batch["x"])}


def test_a_dict_of_inputs_holds_keyword_arguments() -> None:
    assert channelwise.trace(Resident(), {"x": image()}).groups


def test_a_positional_argument_may_be_a_dict() -> None:
    assert channelwise.trace(TakesDict(), ({"x": image()},)).groups


def test_inputs_may_be_keyword_arguments() -> None:
    assert channelwise.trace(Resident(), (), kwargs={"x": image()}).groups


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.randn(2, 4, 8, 8), "channels"),
        (torch.randn(2, 3, 8, 8).double(), "dtype|type"),
        ((image(), image()), "argument"),
        (None, "tensor"),
        ("image.png", "tensor"),
    ],
    ids=["shape", "dtype", "too many", "none", "string"],
)
def test_wrong_inputs_are_an_error_of_ours(inputs: Any, message: str) -> None:
    model, _ = resident()
    with nothing_changes(model), pytest.raises((TraceError, InvalidArgumentError), match=message):
        channelwise.trace(model, inputs)
