"""Whatever happens to a file, reading it gives the same result or an error that names it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from channelwise.errors import ChannelwiseError
from tests.fuzz.files import KINDS, Kind
from tests.fuzz.mutations import mutated


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_dozen_mutations_give_an_error_or_the_same(kind: Kind, tmp_path: Path) -> None:
    assert _others(kind, tmp_path, 12) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_200_mutations_give_an_error_or_the_same(kind: Kind, tmp_path: Path) -> None:
    assert _others(kind, tmp_path, 200) == []


def _others(kind: Kind, folder: Path, mutations: int) -> list[str]:
    """What else the mutations gave, with their seeds."""
    logging.disable(logging.ERROR)
    try:
        whole = folder / "whole"
        whole.mkdir()
        kind.write(whole / kind.name)
        content, expected = (whole / kind.name).read_bytes(), kind.read(whole / kind.name)
        found = []
        for seed in range(mutations):
            place = folder / str(seed)
            place.mkdir()
            path = place / kind.name
            path.write_bytes(mutated(content, seed))
            try:
                result = kind.read(path)
            except ChannelwiseError as error:
                if str(place) not in str(error):
                    found.append(f"{seed}: an error without the file: {error}")
            except Exception as error:
                found.append(f"{seed}: {type(error).__name__}: {error}")
            else:
                if not kind.same(expected, result):
                    found.append(f"{seed}: another result: {result}")
        return found
    finally:
        logging.disable(logging.NOTSET)
