"""The first difference between two programs: the pure function on which verification rests."""

from __future__ import annotations

import numpy as np
import pytest

from channelwise.tracing.labels import LabelSpace
from channelwise.tracing.program import Operation, Program, Result
from channelwise.verify.differences import Deletion, first_difference, first_meeting

FOUR = np.arange(4)
"""Labels of four channels: 1 is removed, 3 must stay."""

DELETION = Deletion(FOUR, np.array([0, 1, 0, 0], bool), np.array([0, 0, 0, 1], bool))


def program(*operations: Operation, runs: tuple[list[int], ...]) -> Program:
    return Program(list(operations), [np.array(run) for run in runs])


def relu(length: int, run: int | None = 0, *, numbers: tuple[str, ...] = (), module: str = "block") -> Operation:
    """An operation that gives (2, length), with a run of labels along axis 1."""
    runs = () if run is None else ((1, run),)
    return Operation("aten.relu", module, numbers, (), (Result((2, length), runs, True),))


FULL = program(relu(4), runs=([0, 1, 2, 3],))


def test_a_program_with_the_labels_deleted_is_the_same() -> None:
    assert first_difference(FULL, program(relu(3), runs=([0, 2, 3],)), DELETION) is None


@pytest.mark.parametrize(
    ("slim", "kind", "channels"),
    [
        (program(relu(3), runs=([2, 0, 3],)), "channels", (0, 2)),
        (program(relu(4), runs=([0, 1, 2, 3],)), "size", (0, 2, 3)),
        (program(relu(2), runs=([0, 2],)), "size", (0, 2, 3)),
        (program(relu(3), relu(3), runs=([0, 2, 3],)), "operation", ()),
        (program(relu(3, module="other"), runs=([0, 2, 3],)), "operation", (0, 1, 2, 3)),
        (program(relu(3, numbers=("0.5",)), runs=([0, 2, 3],)), "number", (0, 1, 2, 3)),
    ],
)
def test_what_is_different_first(slim: Program, kind: str, channels: tuple[int, ...]) -> None:
    found = first_difference(FULL, slim, DELETION)
    assert found is not None
    assert (found.kind, found.channels) == (kind, channels)


def test_the_first_difference_names_its_operation_and_module() -> None:
    full = program(relu(4, module="a"), relu(4, module="b"), runs=([0, 1, 2, 3],))
    slim = program(relu(3, 0, module="a"), relu(3, 1, module="b"), runs=([0, 2, 3], [2, 0, 3]))
    found = first_difference(full, slim, DELETION)
    assert found is not None
    assert (found.operation, found.module) == ("aten.relu", "b")


def test_numbers_may_differ_in_modules_that_count_channels_and_where_none_are_compared() -> None:
    slim = program(relu(3, numbers=("3",)), runs=([0, 2, 3],))
    assert first_difference(FULL, slim, DELETION, counting=["block"]) is None
    assert first_difference(FULL, slim, DELETION, numbers=False) is None
    assert first_difference(FULL, slim, DELETION, counting=["blo"]) is not None


def test_what_is_not_labelled_keeps_its_size_unless_it_was_made_from_nothing() -> None:
    full, slim = program(relu(4, None), runs=()), program(relu(3, None), runs=())
    assert first_difference(full, slim, DELETION) is not None
    made = []
    for one in (relu(4, None), relu(3, None)):
        made.append(program(one._replace(results=(one.results[0]._replace(follows=False),)), runs=()))
    assert first_difference(*made, DELETION) is None


def test_constants_of_one_size_have_the_same_values() -> None:
    def with_constant(shape: tuple[int, ...], digest: bytes) -> Program:
        return program(relu(4)._replace(constants=((shape, digest),)), runs=([0, 2, 3],))

    same = Deletion(FOUR, np.zeros(4, bool), DELETION.stay)
    full = program(relu(4)._replace(constants=(((), b"16"),)), runs=([0, 1, 2, 3],))
    assert first_difference(full, program(full.operations[0], runs=([0, 1, 2, 3],)), same) is None
    found = first_difference(full, with_constant((), b"8"), same)
    assert found is not None
    assert found.kind == "constant"


def test_labels_that_a_run_made_stand_for_any_channel() -> None:
    assert first_difference(FULL, program(relu(3), runs=([0, 17, 3],)), DELETION) is None


@pytest.mark.parametrize(("pair", "guilty"), [((0, 2), (0, 2)), ((0, 3), (0,)), ((3, 3), None)])
def test_only_channels_that_met_before_may_meet(pair: tuple[int, int], guilty: tuple[int, ...] | None) -> None:
    space = LabelSpace(count=4)
    space.join(*(np.array([label]) for label in pair))
    found = first_meeting(space, DELETION)
    assert (None if found is None else found.channels) == guilty
