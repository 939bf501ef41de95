"""Networks with a second way through their blocks, which the model does not take, such as one for export."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.networks.registry import network


class Halves(nn.Module):
    """YOLO's C2f: ``forward`` chunks and adapts; ``forward_split``, which exporters choose, needs ``width``.

    ``steps`` is as large by chance; ``forward_steps`` gives something else than ``forward``.
    """

    def __init__(self, width: int, steps: int) -> None:
        super().__init__()
        self.width, self.steps = width, steps
        self.enter = nn.Conv2d(2 * width, 2 * width, 1)
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.leave = nn.Conv2d(3 * width, 2 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.enter(x).chunk(2, 1)
        return self.leave(torch.cat([a, b, self.conv(b)], 1))

    def forward_split(self, x: Tensor) -> Tensor:
        a, b = self.enter(x).split((self.width, self.width), 1)
        return self.leave(torch.cat([a, b, self.conv(b)], 1))

    def forward_steps(self, x: Tensor) -> Tensor:
        return self.forward(x) * (self.steps + 1)


@network("other ways")
class TwoBlocksOfHalves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3)
        self.one = Halves(8, 8)
        self.grow = nn.Conv2d(16, 24, 1)
        self.two = Halves(12, 12)
        self.head = nn.Conv2d(24, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.grow(self.one(self.stem(x)).relu()).relu()).relu())
