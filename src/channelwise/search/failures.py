"""What goes wrong with the storage of a search, in words that name it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from channelwise.errors import ChannelwiseError, ResultsFileError

STORAGE_ERRORS = (StorageInternalError, SQLAlchemyError, sqlite3.Error, OSError)
UNREADABLE = (LookupError, TypeError, ValueError)
"""What Optuna raises on values that it did not write, as from a file that was edited or damaged."""


class UnusableFileError(ResultsFileError):
    """A file that no repetition makes usable: forced=True sets it aside and begins anew."""


@contextmanager
def storage_errors(where: str, path: Path | None = None) -> Iterator[None]:
    """Turn errors of Optuna, the database and its driver into a ResultsFileError. ``path``: the file, if it is one."""
    try:
        yield
    except ChannelwiseError:
        raise
    except UNREADABLE as error:
        raise damaged(path or where, f"{type(error).__name__}: {error}") from error
    except STORAGE_ERRORS as error:
        cause = root(error)
        if isinstance(cause, sqlite3.DatabaseError) and not _passes(cause):
            raise damaged(path or where, str(cause)) from error
        verb = "Cannot use" if path is not None else "Cannot reach"
        raise ResultsFileError(
            f"{verb} {where}: {first_line(cause)}. What is finished is kept; the search goes on from there when it is "
            "called again."
        ) from error


def damaged(path: object, why: str) -> UnusableFileError:
    """The error for a file that cannot be read."""
    return UnusableFileError(
        f"{path} is damaged or not a file of searches ({why}). Restore it, or begin anew with forced=True (the file is "
        "then kept as .bak)."
    )


def _passes(cause: sqlite3.DatabaseError) -> bool:
    """Whether it has to do with the moment (busy, disk full, no permission), not with what the file holds."""
    return isinstance(cause, sqlite3.OperationalError) and not any(
        text in str(cause) for text in ("no such ", "no column ", "malformed")
    )


def first_line(cause: BaseException) -> str:
    """What an error says, without the advice that drivers add to it."""
    said = str(cause).strip()
    return said.splitlines()[0].rstrip(".") if said else type(cause).__name__


def root(error: BaseException) -> BaseException:
    """What the database driver said, below what others made of it."""
    while True:
        below = getattr(error, "orig", None) or error.__cause__
        if below is None:
            return error
        error = below
