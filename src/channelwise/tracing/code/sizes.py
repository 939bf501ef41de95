"""The shape of a tensor as the user's code sees it during a trace: it tells which of its lengths are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

Read = Callable[[int], int]


class _Length(int):
    """One length, for C code that looks into the tuple unseen: ``torch.Size([2, 8]) == x.shape``."""

    read: Callable[[], int]


class WatchedSize(tuple[int, ...]):
    """A ``torch.Size`` that calls ``read(axis)`` whenever its length along an axis becomes known to somebody.

    ``read`` gives the length, which may remember its origin. ``x.shape[0]`` and ``x.shape[2:]`` say nothing about
    channels; ``b, c, h, w = x.shape`` does. Whatever looks at it as a whole reads all of it. The number of axes may be
    asked freely. ``of`` is the tensor that has this size.
    """

    size: torch.Size
    read: Read
    of: torch.Tensor | None

    def __new__(cls, size: torch.Size, read: Read, of: torch.Tensor | None = None) -> WatchedSize:
        self = super().__new__(cls, (_length(n, partial(read, axis)) for axis, n in enumerate(size)))
        self.size, self.read, self.of = size, read, of
        return self

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return torch.Size

    def whole(self) -> torch.Size:
        """The size itself, all of which is read now."""
        return torch.Size([self.read(axis) for axis in range(len(self.size))])

    def __getitem__(self, index: Any) -> Any:
        axes = range(len(self.size))[index]
        if not isinstance(axes, range):
            return self.read(axes)
        found = [self.read(axis) for axis in axes]
        # Not a plain one: that would, on the left of an operator, look into a watched one unseen.
        return WatchedSize(torch.Size(found), found.__getitem__)

    def __iter__(self) -> Iterator[int]:
        for axis in range(len(self.size)):
            yield self.read(axis)

    def __hash__(self) -> int:
        return hash(self.whole())

    def __reduce__(self) -> Any:
        return torch.Size, (tuple(self.whole()),)

    def numel(self) -> int:
        """The number of elements of the tensor."""
        return self.whole().numel()


def _length(value: int, read: Callable[[], int]) -> _Length:
    length = _Length(value)
    length.read = read
    return length


def _seen(name: str) -> Callable[..., Any]:
    def method(self: _Length, *args: Any) -> Any:
        return getattr(self.read(), name)(*args)

    return method


for _name in ("eq", "ge", "gt", "hash", "index", "int", "le", "lt", "ne", "repr", "str", "format"):
    setattr(_Length, f"__{_name}__", _seen(f"__{_name}__"))


def unwatched(value: Any) -> Any:
    """The size itself, all of which is read, in place of a watched one; anything else as it is."""
    return value.whole() if type(value) is WatchedSize else value


def _of_all(name: str) -> Callable[..., Any]:
    def method(self: WatchedSize, *args: Any) -> Any:
        return getattr(self.whole(), name)(*map(unwatched, args))

    method.__name__ = name
    return method


_WHOLE = ("add", "contains", "eq", "ge", "gt", "le", "lt", "mul", "ne", "repr", "rmul", "str")

for _name in (*(f"__{name}__" for name in _WHOLE), "count", "index"):
    setattr(WatchedSize, _name, _of_all(_name))


def _radd(self: WatchedSize, other: Any) -> Any:
    return other + self.whole()


WatchedSize.__radd__ = _radd  # type: ignore[attr-defined]
