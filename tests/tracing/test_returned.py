"""What a model returns stays, in whatever form it returns it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import channelwise as cw

X = torch.randn(2, 3, 8, 8)


class Image(Tensor):
    """As fastai's and torchvision's are: a tensor of another class."""


class Returning(nn.Module):
    """Two convolutions, and a way to return the result."""

    def __init__(self, how: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b, self.how = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1), how

    def forward(self, x: Tensor) -> Any:
        return self.how(self, self.b(self.a(x).relu()))


def keep(model: nn.Module, y: Tensor) -> None:
    model.results = [y]  # type: ignore[assignment]


SEEN: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "a tensor": lambda _, y: y,
    "a subclass": lambda _, y: y.as_subclass(Image),
    "a parameter": lambda _, y: nn.Parameter(y),
    "the same without gradients": lambda _, y: y.data,
    "values of a dict": lambda _, y: {1: y}.values(),
}
UNSEEN: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "ParameterList": lambda _, y: nn.ParameterList([y]),
    "generator": lambda _, y: (one for one in [y]),
    "map": lambda _, y: map(torch.relu, [y]),
    "function": lambda _, y: lambda: y,
    "partial": lambda _, y: functools.partial(torch.add, y),
    "zip": lambda _, y: (y.mean(), zip([y])),
    "dict": lambda _, y: {y: 1},
    "ndarray": lambda _, y: y.numpy(),
    "NoneType": keep,
}


@pytest.mark.parametrize("how", [*SEEN, *UNSEEN])
def test_output_channels_stay(how: str) -> None:
    graph = cw.trace(Returning({**SEEN, **UNSEEN}[how]).eval(), X)
    assert [(group.name, group.size) for group in graph.groups] == [("a", 16)]
    (note,) = [n for n in graph.structure.notes if "cannot be looked into" in n] or [""]
    assert (f"({how})" in note) == (how in UNSEEN)


@pytest.mark.parametrize("where", ["input", "weight", "inside"])
def test_tensors_of_a_subclass_keep_their_labels(where: str) -> None:
    model = Returning(SEEN["a subclass" if where == "inside" else "a tensor"]).eval()
    if where == "weight":
        model.a.weight = nn.Parameter(model.a.weight.as_subclass(Image))
    graph = cw.trace(model, X.as_subclass(Image) if where == "input" else X)
    assert [(group.name, group.size) for group in graph.groups] == [("a", 16)]
    selection = graph.select(sparsity=0.5)
    slim, masked = graph.slim(selection), graph.sparse(selection).eval()
    torch.testing.assert_close(slim(X).as_subclass(Tensor), masked(X).as_subclass(Tensor))


PICKED: dict[str, tuple[Callable[[nn.Module, Tensor], Any], bool]] = {
    "by index, of a subclass": (lambda _, y: y[:, 1], True),
    "by select, of a subclass": (lambda _, y: y.select(1, 1), True),
    "in a parameter": (lambda _, y: nn.Parameter(y[:, 1]), False),
    "in a subclass": (lambda _, y: y[:, 1].as_subclass(Image), False),
}


@pytest.mark.parametrize("how", PICKED)
def test_a_channel_that_is_picked_out_stays_in_whatever_form(how: str) -> None:
    function, subclass = PICKED[how]
    graph = cw.trace(Returning(function).eval(), X.as_subclass(Image) if subclass else X)
    assert [group.name for group in graph.groups] == ["a"]


@dataclass(slots=True)
class Features:
    features: Tensor


@dataclass(slots=True)
class Output(Features):
    score: Tensor


def test_inherited_slots_are_looked_into() -> None:
    graph = cw.trace(Returning(lambda _, y: Output(y, y.mean())).eval(), X)
    assert [group.name for group in graph.groups] == ["a"]


def kept_beside(model: nn.Module, y: Tensor) -> Any:
    model.features = model.a(X).relu()  # type: ignore[assignment]
    return model.b(model.features), y.shape[-2:], {"activation": nn.functional.relu}


def test_sizes_and_functions_that_hold_nothing_are_no_reason() -> None:
    graph = cw.trace(Returning(kept_beside).eval(), X)
    assert [group.name for group in graph.groups] == ["a"]
    assert not any("cannot be looked into" in note for note in graph.structure.notes)


class Mapped(nn.Module):
    def __init__(self, how: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.how = nn.Linear(8, 16), nn.Linear(16, 4), how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(lambda t: self.b(self.a(t).relu()), x)


def test_tensors_inside_of_function_transforms_have_no_place_in_memory() -> None:
    graph = cw.trace(Mapped(lambda f, x: torch.vmap(f)(x)).eval(), torch.randn(2, 5, 8))
    assert [group.size for group in graph.groups] == [16]
    cw.trace(Mapped(lambda f, x: torch.func.jvp(f, (x,), (x,))[0]).eval(), torch.randn(2, 8))
