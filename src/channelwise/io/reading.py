"""Files read as a whole, or an error that names them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from channelwise.errors import ResultsFileError


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn every failure to read ``path`` (no permission, too long a name) into a ResultsFileError."""
    try:
        yield
    except OSError as error:
        raise ResultsFileError(f"Cannot read {path}: {error.strerror or error}.") from error


def exists(path: Path) -> bool:
    """Whether there is something at ``path``. Raises ResultsFileError if nothing can be."""
    with reading(path):
        return path.exists()


def check_readable(path: Path) -> None:
    """Raise ResultsFileError unless there is a file: reading a pipe or a device may never end."""
    if not exists(path):
        raise ResultsFileError(f"There is no file {path}.")
    if not path.is_file():
        raise ResultsFileError(
            f"{path} is a folder, a device or a pipe, not a file. Give the path of a file, or move it away."
        )


def read(path: Path) -> bytes:
    """The content of a file. Raises ResultsFileError if it cannot be read."""
    check_readable(path)
    with reading(path):
        return path.read_bytes()
