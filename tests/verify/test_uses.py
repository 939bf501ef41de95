"""What the user's code may do with channels that it knows numbers of: the less it does, the fewer selections tell."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from channelwise.solve.build import build
from channelwise.tracing.tracer import trace_passes
from channelwise.verify.questions import Use, asked_of, uses_of

CASES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Use]] = {
    "some of the channels": (lambda x, y: torch.cat([x[:, 4:], x[:, :4]], 1), Use.PICKED),
    "one group of several": (lambda x, y: torch.cat([x, y], 1)[:, :8] * 2, Use.PICKED),
    "a number of several groups": (lambda x, y: x * torch.cat([x, y], 1).shape[1], Use.PICKED),
    "all of the only group, twice": (lambda x, y: torch.cat([x, x], 1)[:, :8] * 2, Use.COUNTED),
    "a number": (lambda x, y: x * x.shape[1], Use.READ),
    "a shape": (lambda x, y: x.reshape(-1, 8, 9).relu().reshape(-1, 8, 3, 3), Use.COUNTED),
}


class Middle(nn.Module):
    """Two groups of eight channels, and some code between these and the head."""

    def __init__(self, code: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.code = code

    def forward(self, x: Tensor) -> Tensor:
        x, y = self.first(x), self.second(x)
        return self.head(self.code(x, y)) + y.mean((1, 2, 3), keepdim=True)


@pytest.mark.parametrize("case", CASES)
def test_use(case: str) -> None:
    code, use = CASES[case]
    trace = trace_passes(Middle(code), [torch.randn(2, 3, 3, 3)], {}, shared=False)
    structure = build(trace)
    assert uses_of(trace, structure, asked_of(trace, structure))["first"] is use
