"""Work whose result nobody uses: nothing of it shows in outputs, by which the user's code is judged."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from channelwise.testing import check_oracle


class UnusedProducts(nn.Module):
    """Products of the larger ones of neighbouring channels, of which there are half as many; they are thrown away."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv1d(3, 8, 1), nn.Conv1d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        n, c, length = x.shape
        larger = x.reshape(n, c // 2, 2, length).amax(2)
        larger @ larger.transpose(1, 2)
        return self.head(x)


@pytest.mark.xfail(strict=True, reason="which axis of a view gets shorter is assumed where no output tells")
def test_macs_of_products_that_nobody_uses() -> None:
    check_oracle(UnusedProducts(), torch.randn(2, 3, 6))
