"""More mutations than the tests have: ``python -m tests.fuzz FIRST END [NAME ...]``, seeds FIRST to END - 1."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.fuzz.check import others
from tests.fuzz.files import KINDS

first, end, *names = sys.argv[1:]
failed = False
for kind in KINDS:
    if not names or kind.name in names:
        with tempfile.TemporaryDirectory() as folder:
            found = others(kind, Path(folder), range(int(first), int(end)))
        failed |= bool(found)
        print(kind.name, *found or ["an error or the same result, each time"], sep="\n  ", flush=True)
sys.exit(failed)
