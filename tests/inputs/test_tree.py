"""Nested values: every tensor in them is found, and changed ones come back in containers of the same types."""

from collections import OrderedDict, UserDict, defaultdict, namedtuple
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from channelwise.inputs.tree import leaves, mapped, output_values, tensors_in

Pair = namedtuple("Pair", "first second")


class Record(dict):
    """A dict of a class of its own, which no library of trees knows."""


class Row(list):
    """The same for lists."""


@dataclass
class Boxes:
    """What a detector returns."""

    places: torch.Tensor
    scores: list[torch.Tensor]


class Slotted:
    """An object without a dict of attributes."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


A, B = torch.zeros(2), torch.ones(3)

CONTAINERS = {
    "list": [A, [B]],
    "tuple": (A, (B,)),
    "named tuple": Pair(A, B),
    "dict in its order": {"z": A, "a": {"b": B}},
    "ordered dict": OrderedDict(z=A, a=B),
    "default dict": defaultdict(list, z=A, a=B),
    "dict of a user": Record(z=A, a=B),
    "list of a user": Row([A, B]),
    "mapping that is no dict": UserDict(z=A, a=B),
    "mapping that cannot change": MappingProxyType({"z": A, "a": B}),
    "values of other kinds between": [None, A, "text", 3, {"b": B, "c": range(9)}],
}


@pytest.mark.parametrize("value", CONTAINERS.values(), ids=CONTAINERS)
def test_tensors_are_found_and_changed_in_containers_of_every_kind(value: Any) -> None:
    assert [id(t) for t in tensors_in(value)] == [id(A), id(B)]

    changed = mapped(value, lambda t: t + 1)

    assert type(changed) is type(value)
    assert [t.tolist() for t in tensors_in(changed)] == [[1, 1], [2, 2, 2]]
    assert [t.tolist() for t in tensors_in(value)] == [[0, 0], [1, 1, 1]]
    assert len(leaves(changed)) == len(leaves(value))


def test_what_a_dict_of_a_user_holds_beside_its_items_stays() -> None:
    value = Record(a=A)
    value.size = 7

    assert mapped(value, torch.clone).size == 7


def test_outputs_of_transformers_keep_items_and_attributes_together() -> None:
    outputs = pytest.importorskip("transformers.modeling_outputs")
    output = outputs.BaseModelOutput(last_hidden_state=A, hidden_states=(B,))

    changed = mapped(output, lambda t: t + 1)

    assert type(changed) is type(output)
    assert changed.last_hidden_state is changed["last_hidden_state"]
    assert changed.hidden_states[0].tolist() == [2, 2, 2]
    assert output.last_hidden_state is A


def test_lists_and_dicts_are_copied_even_without_a_tensor() -> None:
    value: dict[str, Any] = {"state": [], "sizes": (1, 2)}

    changed = mapped(value, torch.clone)
    changed["state"].append(1)

    assert value["state"] == []
    assert changed["sizes"] is value["sizes"]


def test_attributes_are_looked_into_on_request() -> None:
    value = [Boxes(A, [B]), Slotted({"a": A})]

    assert tensors_in(value) == []
    assert [id(t) for t in tensors_in(value, attributes=True)] == [id(A), id(B), id(A)]


def test_objects_that_hold_each_other_are_visited_once() -> None:
    one = Slotted(None)
    one.value = [A, one]

    assert [id(t) for t in tensors_in(one, attributes=True)] == [id(A)]


def test_modules_and_classes_are_not_looked_into() -> None:
    class Holder:
        kept = A

    assert tensors_in([nn.Linear(2, 2), Holder], attributes=True) == []


def test_plain_numbers_are_compared_only_where_there_is_nothing_else() -> None:
    assert [v.tolist() for v in output_values([1, np.arange(2), A])] == [[0, 1], [0, 0]]
    assert [v.item() for v in output_values({"loss": 0.5, "count": 2})] == [0.5, 2.0]
    assert output_values("text") == []
