"""Files read as a whole, or an error that names them."""

from __future__ import annotations

from pathlib import Path

from channelwise.errors import ResultsFileError


def check_readable(path: Path) -> None:
    """Raise ResultsFileError unless there is a file: reading a pipe or a device may never end."""
    if not path.exists():
        raise ResultsFileError(f"There is no file {path}.")
    if not path.is_file():
        raise ResultsFileError(f"{path} is a folder, a device or a pipe, not a file. Give the path of a file.")


def read(path: Path) -> bytes:
    """The content of a file. Raises ResultsFileError if it cannot be read."""
    check_readable(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise ResultsFileError(f"Cannot read {path}: {error.strerror or error}.") from error
