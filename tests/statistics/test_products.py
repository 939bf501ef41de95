"""Layers written as matrix products give what the layers give."""

import pytest
import torch
from torch import nn

from channelwise.statistics.products import Product, ProductWatch

CASES = {
    "strided": (nn.Conv2d(4, 6, 3, 2, 1), (2, 4, 9, 8)),
    "padded to the same size, dilated, grouped": (
        nn.Conv2d(4, 6, 3, padding="same", dilation=2, groups=2, bias=False),
        (2, 4, 9, 8),
    ),
    "different paddings": (nn.Conv2d(4, 6, (3, 1), padding=(2, 0)), (2, 4, 5, 5)),
    "circular padding": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (2, 4, 5, 5)),
    "depthwise 1-d": (nn.Conv1d(4, 4, 5, 3, 2, groups=4), (2, 4, 19)),
    "3-d": (nn.Conv3d(2, 4, 3, padding=1), (2, 2, 5, 5, 5)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1), (2, 4, 5, 6)),
    "transposed, grouped, dilated": (nn.ConvTranspose2d(4, 6, 4, 2, 1, groups=2, dilation=2), (2, 4, 5, 6)),
    "transposed with gaps": (nn.ConvTranspose1d(4, 6, 2, 3, output_padding=1), (2, 4, 5)),
    "linear": (nn.Linear(4, 3), (2, 7, 4)),
    "linear on one sample": (nn.Linear(4, 3, bias=False), (4,)),
}


class Comparing(ProductWatch):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__({id(p): name for name, p in layer.named_parameters()})
        self.layer = layer
        self.seen = 0

    def product(self, product: Product, x: torch.Tensor, compute) -> torch.Tensor:
        y = compute()
        weight = self.layer.weight.detach()
        matrix, kernel = product.matrix(weight), tuple(weight.shape[2:])
        bias = 0 if product.bias is None else self.layer.bias.detach().view(product.groups, 1, -1)
        torch.testing.assert_close(product.rows(x, kernel) @ matrix + bias, product.outputs(y))
        chosen = torch.randperm(product.row_count(y))[:3]
        some = product.rows(x, kernel, chosen) @ matrix + bias
        torch.testing.assert_close(some, product.outputs(y, chosen))
        assert torch.equal(product.weight_of(matrix, weight.shape), weight)
        self.seen += 1
        return y


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_rows_times_matrix_are_the_outputs(case, channels_last):
    layer, shape = CASES[case]
    x = torch.randn(shape)
    if channels_last and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    watch = Comparing(layer)
    with torch.no_grad(), watch:
        layer(x)
    assert watch.seen == 1


def test_weights_that_are_computed_are_left_alone():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    watch = Comparing(layer)
    with torch.no_grad(), watch:
        layer(torch.randn(2, 4))
    assert watch.seen == 0
