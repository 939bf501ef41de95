"""Products of which nothing shows in outputs: they are part of the program, and so are their sizes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from channelwise.structure import Cause
from channelwise.testing import check_oracle
from tests.networks.expectations import why


class Products(nn.Module):
    """Products of the larger ones of neighbouring channels, of which there are half as many, used in many ways."""

    def __init__(self, use: str) -> None:
        super().__init__()
        self.use = use
        self.first, self.head = nn.Conv1d(3, 8, 1), nn.Conv1d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        n, c, length = x.shape
        larger = x.reshape(n, c // 2, 2, length).amax(2)
        product = larger @ larger.transpose(1, 2)
        if self.use == "not":
            # The next tensors may lie where the unused ones were.
            del product
        elif self.use == "in place":
            x.mul_(product.mean((1, 2), keepdim=True))
        elif self.use == "view":
            x.view(n, -1).add_(product.mean())
        elif self.use == "number":
            return self.head(x) if product.sum().item() > 0 else -self.head(x)
        elif self.use == "thrown away at last":
            product = product.softmax(-1).mean()
        return self.head(x)


USES = ("not", "thrown away at last", "in place", "view", "number")


@pytest.mark.parametrize("use", USES)
def test_channels_of_a_product_of_another_size_stay(use: str) -> None:
    graph = check_oracle(Products(use), torch.randn(2, 3, 6)).graph
    assert why(graph, "first") == {(Cause.CODE, "")}
