"""What can be the path of a file."""

from __future__ import annotations

import os
from typing import TypeGuard


def is_path(given: object) -> TypeGuard[str | os.PathLike[str]]:
    """Whether something is a path of text that can name a file: not empty, and without a zero byte."""
    if not isinstance(given, (str, os.PathLike)):
        return False
    text = os.fspath(given)
    return isinstance(text, str) and text != "" and "\0" not in text
