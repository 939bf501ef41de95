"""What the function watch says of calls whose operations would tell another story."""

import pytest
import torch
from torch import Tensor, nn

import channelwise as cw
from channelwise.report.inspection import frozen_outputs
from channelwise.structure import Cause


class Recurrent(nn.Module):
    """A recurrent layer between linear ones."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.embed, self.recurrent, self.head = nn.Linear(6, 8), layer, nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(self.embed(x))[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_layer_is_the_reason_and_none_of_its_operations(kind, dtype):
    model = Recurrent(kind(8, 12, 2, batch_first=True)).to(dtype).eval()
    graph = cw.trace(model, torch.randn(2, 5, 6, dtype=dtype))
    told = {row.reason: row for row in frozen_outputs(graph.structure) if row.cause is not Cause.OUTPUT}
    (text,) = told
    assert text.startswith("a recurrent layer keeps its widths")
    assert text.endswith("in recurrent)")
    assert told[text].cause is Cause.RECURRENT
    assert set(told[text].layers) == {"embed", "recurrent"}
