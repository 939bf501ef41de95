"""Whatever happens to a file, reading it gives the same result or an error that names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.check import others
from tests.fuzz.files import KINDS, Kind


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_dozen_mutations_give_an_error_or_the_same(kind: Kind, tmp_path: Path) -> None:
    assert others(kind, tmp_path, range(12)) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_200_mutations_give_an_error_or_the_same(kind: Kind, tmp_path: Path) -> None:
    assert others(kind, tmp_path, range(200)) == []
