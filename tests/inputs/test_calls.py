"""A model that is called in a way it does not take, or that asks for a missing device: the error says the way out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention

import channelwise as cw
from channelwise.errors import TraceError
from channelwise.surgery import masked_model

X = torch.zeros(2, 3, 8, 8)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


class TakesADict(Net):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return super().forward(batch["image"])


class TakesAList(Net):
    def forward(self, images: list[Tensor]) -> Tensor:
        return super().forward(torch.stack(images))


class AsksForCuda(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.cuda())


@pytest.mark.parametrize(
    ("model", "inputs", "kwargs", "message"),
    [
        (TakesADict(), {"image": X}, None, r"A dict gives keyword arguments, here image\. .* give \(inputs,\)"),
        (TakesAList(), [X[0], X[1]], None, r"A list gives positional arguments, here 2\. .* give \(inputs,\)"),
        (Net(), (X, X), None, r"A tuple gives positional arguments, here 2"),
        (Net(), X, {"mask": X}, r"Give all that its forward needs"),
    ],
    ids=["dict", "list", "too many", "unknown keyword"],
)
def test_a_call_that_does_not_fit_says_how_to_give_the_inputs(
    model: nn.Module, inputs: Any, kwargs: Any, message: str
) -> None:
    with pytest.raises(TraceError, match=message):
        cw.trace(model, inputs, kwargs=kwargs)


@pytest.mark.parametrize(("model", "inputs"), [(TakesADict(), ({"image": X},)), (TakesAList(), ([X[0], X[1]],))])
def test_the_way_out_works(model: nn.Module, inputs: Any) -> None:
    assert [group.name for group in cw.trace(model, inputs).groups] == ["first"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows what happens without CUDA")
def test_code_of_the_model_that_asks_for_a_missing_device() -> None:
    with pytest.raises(TraceError, match=r"device that is not there\. Let it use that of its input: x\.device"):
        cw.trace(AsksForCuda(), X)


class Differentiates(Net):
    """Gives the gradient of an output with respect to the image."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(self.second(self.first(x)).sum(), x)[0]


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Linear(8, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.values(x)[:, None]
        return flex_attention(x, x, x)


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (Differentiates(), X, r"asks for them: `with torch\.enable_grad\(\):`"),
        (Attends(), torch.zeros(2, 16, 8), r"F\.scaled_dot_product_attention for flex_attention"),
    ],
)
def test_what_a_trace_cannot_run_is_told_with_the_way_out(model: nn.Module, inputs: Tensor, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        cw.trace(model.eval(), inputs)


def test_a_forward_pass_that_asks_for_gradients_is_traced() -> None:
    class AsksForGradients(Differentiates):
        def forward(self, x: Tensor) -> Tensor:
            with torch.enable_grad():
                return super().forward(x)

    model = AsksForGradients().eval()
    graph = cw.trace(model, X)
    selection = graph.select(sparsity=0.5) if graph.groups else cw.Selection({})
    torch.testing.assert_close(graph.slim(selection)(X), masked_model(model, graph.structure, selection)(X))
