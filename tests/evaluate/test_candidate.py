"""The kept channels of a candidate survive being stored, and damage to them is noticed."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from channelwise.errors import ResultsFileError
from channelwise.evaluate.candidate import pack, unpack
from channelwise.selection import Selection
from tests.handmade import chain

STRUCTURE = chain((16, 9, 24))
NAMES = list(STRUCTURE.full())


def test_what_was_packed_comes_back() -> None:
    rng = np.random.default_rng(0)
    sizes = STRUCTURE.full()
    kept = {name: np.sort(rng.choice(size, size // 2, replace=False)) for name, size in sizes.items()}
    kept[NAMES[0]] = np.arange(sizes[NAMES[0]])
    selection = Selection(kept)
    text = json.dumps(pack(selection, STRUCTURE))
    assert NAMES[0] not in text
    assert unpack(json.loads(text), STRUCTURE, "file") == selection


@pytest.mark.parametrize(
    "packed",
    [
        None,
        {"nobody": "AAA="},
        {NAMES[1]: "?"},
        {NAMES[1]: "AAAA"},
        {NAMES[1]: "AAA="},
        {NAMES[1]: 5},
    ],
)
def test_damage_is_an_error_that_names_the_file(packed: Any) -> None:
    with pytest.raises(ResultsFileError, match=r"^net\.search "):
        unpack(packed, STRUCTURE, "net.search")
