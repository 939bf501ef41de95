"""Changes to the bytes of a file, each told by its seed."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

ODD = [b"-1", b"0", b"2.5", b"1e999", b"9" * 40, b"null", b"true", b'"x"', b"[]", b"{}", b"[" * 500, b"NaN", b"\xff"]


def mutated(content: bytes, seed: int) -> bytes:
    """``content`` with one change, or two."""
    rng = random.Random(seed)
    changed = content
    for _ in range(rng.choice([1, 1, 1, 2])):
        changed = rng.choice(CHANGES)(changed, rng)
    return changed if changed != content else mutated(content, seed + 1_000_003)


def _place(content: bytes, rng: random.Random) -> tuple[int, int]:
    """A short part of the content."""
    start = rng.randrange(max(1, len(content)))
    return start, min(len(content), start + rng.choice([1, 2, 8, 64, 512]))


def _flip_a_bit(content: bytes, rng: random.Random) -> bytes:
    at, _ = _place(content, rng)
    return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :] if content else b"\0"


def _overwrite(content: bytes, rng: random.Random) -> bytes:
    start, end = _place(content, rng)
    return content[:start] + rng.randbytes(end - start) + content[end:]


def _blank(content: bytes, rng: random.Random) -> bytes:
    start, end = _place(content, rng)
    return content[:start] + rng.choice([b"\0", b" ", b"0", b"\n"]) * (end - start) + content[end:]


def _delete(content: bytes, rng: random.Random) -> bytes:
    start, end = _place(content, rng)
    return content[:start] + content[end:]


def _insert(content: bytes, rng: random.Random) -> bytes:
    start, _ = _place(content, rng)
    return content[:start] + rng.choice([rng.randbytes(rng.randrange(1, 20)), *ODD]) + content[start:]


def _repeat(content: bytes, rng: random.Random) -> bytes:
    start, end = _place(content, rng)
    return content[:end] + content[start:end] + content[end:]


def _swap(content: bytes, rng: random.Random) -> bytes:
    (a, b), (c, d) = sorted([_place(content, rng), _place(content, rng)])
    return content[:a] + content[c:d] + content[b:c] + content[a:b] + content[d:] if b <= c else content[::-1]


def _truncate(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _change_a_number(content: bytes, rng: random.Random) -> bytes:
    found = list(re.finditer(rb"\d+(\.\d+)?", content))
    if not found:
        return content + b"1"
    start, end = rng.choice(found).span()
    return content[:start] + rng.choice(ODD) + content[end:]


def _change_a_digit(content: bytes, rng: random.Random) -> bytes:
    """The length stays, so that only the value tells."""
    found = [at for at, byte in enumerate(content) if byte in b"0123456789"]
    if not found:
        return content + b"1"
    at = rng.choice(found)
    return content[:at] + rng.choice(b"0123456789").to_bytes(1, "big") + content[at + 1 :]


CHANGES: list[Callable[[bytes, random.Random], bytes]] = [
    _flip_a_bit, _overwrite, _blank, _delete, _insert, _repeat, _swap, _truncate, _change_a_number, _change_a_digit,
]  # fmt: skip
