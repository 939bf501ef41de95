"""Which slots stay of every tensor when groups keep some of their channels."""

from __future__ import annotations

import numpy as np
import pytest
from torch import nn

from channelwise.errors import InvalidArgumentError
from channelwise.surgery.cuts import Stays, cut_tensors, owners
from tests.surgery.small_networks import conv_net, group, grouped_net, select, structure


def test_slots_of_several_groups_and_of_none_on_one_axis() -> None:
    model = nn.Sequential(nn.BatchNorm1d(7))
    names = ("0.weight", "0.bias")
    one = group("one", *((name, 0, np.array([[0, 4], [1, 5]])) for name in names))
    two = group("two", *((name, 0, np.array([3, 2])) for name in names))
    found = owners(structure(model, one, two))
    assert found["0.weight"].axes[0].tolist() == [0, 1, 3, 2, 0, 1, 4]
    assert found["0.weight"].axes[0] is found["0.bias"].axes[0]
    assert found.keys() == set(names)
    for channels, kept in (([1, 0, 1, 0], [0, 3, 4, 6]), ([0, 1, 1, 1], [1, 2, 3, 5, 6])):
        cut = Stays(np.array(channels, bool)).cut(found["0.weight"])
        assert cut is not None
        assert cut.kept[0].tolist() == kept
    assert Stays(np.ones(4, bool)).cut(found["0.weight"]) is None


def test_blocks_that_keep_different_numbers_are_refused() -> None:
    _, found = grouped_net()
    with pytest.raises(InvalidArgumentError, match=r"parts of the group 'stem' must keep equally many.*\[1, 3\]"):
        cut_tensors(found, select(found, stem=[0, 5, 6, 7]))


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"conv1": np.array([0, 8])}, "conv1.*0 to 7; the selection keeps 0, 8"),
        ({"other": np.array([0])}, "names 'other', which is no channel group"),
        ({"conv2": None}, "nothing about the group 'conv2'"),
    ],
)
def test_a_selection_of_another_structure_is_refused(kept: dict[str, np.ndarray | None], message: str) -> None:
    _, found = conv_net()
    selection = select(found)
    merged = {**selection.kept, **kept}
    changed = type(selection)({name: index for name, index in merged.items() if index is not None})
    with pytest.raises(InvalidArgumentError, match=message):
        cut_tensors(found, changed)


def test_blocks_that_keep_different_numbers_are_refused_without_parts_too() -> None:
    model, _ = grouped_net()
    columns = group("stem", ("1.weight", 1, np.arange(8)))
    found = structure(model, columns, blocks={"1.weight": 2})
    with pytest.raises(InvalidArgumentError, match=r"1\.weight must keep equally many columns.*\[1, 3\]"):
        cut_tensors(found, select(found, stem=[0, 5, 6, 7]))


@pytest.mark.parametrize("given", [None, 0.5, {"stem": [0]}])
def test_what_is_no_selection_is_refused(given: object) -> None:
    _, found = grouped_net()
    with pytest.raises(InvalidArgumentError, match="A selection is needed, as graph"):
        cut_tensors(found, given)  # type: ignore[arg-type]
