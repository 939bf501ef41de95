"""Reads the mutations of a file and says what was neither an error of ours nor the same result."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from channelwise.errors import ChannelwiseError
from tests.fuzz.files import Kind
from tests.fuzz.mutations import mutated


def others(kind: Kind, folder: Path, seeds: Iterable[int]) -> list[str]:
    """What else the mutations gave, with their seeds."""
    logging.disable(logging.ERROR)
    try:
        whole = folder / "whole"
        whole.mkdir()
        kind.write(whole / kind.name)
        content, expected = (whole / kind.name).read_bytes(), kind.read(whole / kind.name)
        found = []
        for seed in seeds:
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
