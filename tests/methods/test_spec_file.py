"""Spec files: of this network, and saying what differs where they are of another."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from channelwise.errors import ResultsFileError
from channelwise.methods.spec_file import read_spec, write_spec
from channelwise.report import Summary
from channelwise.selection import Selection
from channelwise.structure import Structure
from tests.handmade import chain

SUMMARY = Summary("Net", 2.0, 1.0, 20, 10)


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (lambda: chain([8, 12, 4]), r"it has no group 'net\.2\.conv'"),
        (lambda: chain([8]), r"it has a group 'net\.1\.conv', which is not here"),
        (lambda: chain([8, 16]), r"its group 'net\.1\.conv' has 12 channels, not 16"),
        (lambda: chain([8, 12], multiplicity=2), "layers have other shapes"),
    ],
)
def test_a_spec_of_another_network_says_what_differs(
    other: Callable[[], Structure], difference: str, tmp_path: Path
) -> None:
    structure = chain([8, 12])
    path = tmp_path / "Net.spec"
    write_spec(path, structure, Selection({"net.0.conv": np.arange(3), "net.1.conv": np.arange(5)}), SUMMARY)
    assert read_spec(path, structure).groups["net.0.conv"].kept == [0, 1, 2]
    with pytest.raises(ResultsFileError, match=rf"Net.spec is of another network .of class Net.: {difference}"):
        read_spec(path, other())


def test_a_channel_that_was_changed_is_told_and_an_edit_on_purpose_is_taken(tmp_path: Path) -> None:
    structure, path = chain([8, 12]), tmp_path / "Net.spec"
    write_spec(path, structure, Selection({"net.0.conv": np.arange(3), "net.1.conv": np.arange(5)}), SUMMARY)
    spec = json.loads(path.read_text())
    spec["groups"]["net.0.conv"]["kept"] = [0, 1, 5]
    path.write_text(json.dumps(spec))
    with pytest.raises(ResultsFileError, match=r"Net.spec: group 'net.0.conv' was edited or damaged.*remove .*'check'"):
        read_spec(path, structure)
    del spec["groups"]["net.0.conv"]["check"]
    path.write_text(json.dumps(spec))
    assert read_spec(path, structure).groups["net.0.conv"].kept == [0, 1, 5]
