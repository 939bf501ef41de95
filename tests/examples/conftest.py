"""Lets tests import the example programs as a user's Python would run them, and writes small packed image files."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(autouse=True)
def _run_in_an_empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def pack() -> Callable[[Path, np.ndarray], None]:
    """Writes images (N, 32, 32, 3) as the loader's packed files, with labels 0, 1, 2, ... modulo ten."""

    def write(path: Path, images: np.ndarray) -> None:
        files = []
        for image in images:
            file = io.BytesIO()
            Image.fromarray(image).save(file, "JPEG", quality=95)
            files.append(np.frombuffer(file.getvalue(), np.uint8))
        offsets = np.cumsum([0] + [len(f) for f in files])
        np.savez(
            path, jpeg=np.concatenate(files), offsets=offsets, labels=(np.arange(len(images)) % 10).astype(np.uint8)
        )

    return write
