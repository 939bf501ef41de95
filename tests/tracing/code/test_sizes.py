"""Which lengths of a shape the user's code reads: only those of channels are a question for verification."""

from __future__ import annotations

import copy
import math
import operator
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import channelwise
from channelwise.errors import ChannelwiseError
from channelwise.tracing.code.sizes import WatchedSize
from channelwise.tracing.tracer import trace_passes

ALL = {0, 1, 2, 3}


def match(size: Any) -> int:
    match size:
        case (_, channels, _, _):
            return channels
    raise AssertionError


def unpack(size: Any) -> int:
    _, channels, *_ = size
    return channels


READS: dict[str, tuple[Callable[[Any], Any], set[int]]] = {
    "one": (lambda s: s[0], {0}),
    "one from the end": (lambda s: s[-1], {3}),
    "slice": (lambda s: s[2:], {2, 3}),
    "slice of a slice": (lambda s: s[2:][0], {2, 3}),
    "slice and all": (lambda s: s[:1] + s, ALL),
    "all behind a tuple": (lambda s: (1, *s, 2), ALL),
    "added on the right": (lambda s: s + (1,), ALL),
    "added on the left": (lambda s: (1,) + s, ALL),
    "number of axes": (len, set()),
    "type": (lambda s: isinstance(s, torch.Size) and isinstance(s, tuple), set()),
    "unpacked": (unpack, ALL),
    "matched": (match, ALL),
    "first of an iterator": (lambda s: next(iter(s)), {0}),
    "arguments": (lambda s: max(*s), ALL),
    "product": (math.prod, ALL),
    "product of an array": (np.prod, ALL),
    "shape of an array": (lambda s: np.zeros(s).shape, ALL),
    "size of it": (torch.Size, ALL),
    "compared": (lambda s: s == (2, 3, 4, 5), ALL),
    "compared on the right": (lambda s: operator.eq((2, 3, 4, 5), s), ALL),
    "compared with a size": (lambda s: torch.Size([2, 3, 4, 5]) == s, ALL),
    "compared with another size": (lambda s: torch.Size([2, 3, 4, 6]) != s, ALL),
    "compared up to a difference": (lambda s: torch.Size([2, 7, 4, 5]) == s, {0, 1}),
    "behind a size": (lambda s: torch.Size([1]) + s == (1, 2, 3, 4, 5), ALL),
    "formatted": (lambda s: "%s %s %s %s" % s, ALL),  # noqa: UP031
    "hashed": (hash, ALL),
    "contained": (lambda s: 3 in s, ALL),
    "counted": (lambda s: s.numel(), ALL),
    "copied": (copy.deepcopy, ALL),
    "pickled": (lambda s: pickle.loads(pickle.dumps(s)), ALL),
    "printed": (str, ALL),
    "list": (list, ALL),
}


@pytest.mark.parametrize("how", READS)
def test_a_watched_size_gives_what_a_size_gives_and_tells_what_is_read(how: str) -> None:
    read, axes = READS[how]
    size = torch.Size([2, 3, 4, 5])
    seen: set[int] = set()

    def look(axis: int) -> int:
        seen.add(axis)
        return size[axis]

    assert read(WatchedSize(size, look)) == read(size)
    assert seen == axes


class Reads(nn.Module):
    def __init__(self, read: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.read = read
        self.stem, self.hidden, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.hidden(x) * self.read(x))


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.shape[0],
        lambda x: x.size()[2:].numel(),
        lambda x: x.size(-1),
        lambda x: x.new_ones(1, 1, *x.shape[2:]),
        len,
    ],
)
def test_sizes_without_channels_raise_no_question(read: Callable[[Tensor], Any]) -> None:
    trace = trace_passes(Reads(read), [torch.randn(2, 3, 6, 5)], {}, shared=False)
    assert not trace.space.questions
    graph = channelwise.trace(Reads(read), torch.randn(2, 3, 6, 5))
    assert [group.name for group in graph.groups] == ["stem", "hidden"]


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.shape[1],
        lambda x: x.size(1),
        lambda x: x.size(dim=-3),
        lambda x: x.numel(),
        lambda x: math.prod(x.shape),
        lambda x: torch.ones(x.shape).sum(),
        lambda x: 1 if torch.Size([2, 8, 6, 5]) == torch.Size(x.shape) else 2,
        lambda x: 1 if torch.Size([2, 8, 6, 5]) == x.shape else 2,
        lambda x: 1 if torch.Size([2, 8, 6, 5]) == x.size() else 2,
    ],
)
def test_a_factor_that_depends_on_the_number_of_channels_keeps_them(read: Callable[[Tensor], Any]) -> None:
    graph = channelwise.trace(Reads(read), torch.randn(2, 3, 6, 5))
    assert [group.name for group in graph.groups] == ["hidden"]


def test_errors_of_code_that_uses_a_shape_wrongly_are_its_own() -> None:
    with pytest.raises(ChannelwiseError, match="index out of range"):
        channelwise.trace(Reads(lambda x: x.shape[7]), torch.randn(2, 3, 6, 5))
