"""Every product that runs is counted, whether labels meet there or not, and torch's flop counter is asked."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import channelwise as cw
from channelwise import cost
from channelwise.testing import check_oracle

aten = torch.ops.aten

WAYS = {
    "as it is": lambda y: y,
    "an operation without a rule": lambda y: y.tril(),
    "memory in another order": lambda y: y.as_strided((2, 8, 16), (128, 1, 8)),
    "numpy": lambda y: torch.from_numpy(y.detach().numpy()),
    "plain numbers": lambda y: torch.tensor(y.tolist()),
    "nothing": lambda y: torch.ones(y.shape),
}


class Products(nn.Module):
    """Two layers, and a product of what comes of them by some way."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.first, self.second, self.head = way, nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = WAYS[self.way](self.second(self.first(x).relu()))
        return self.head(y @ y.transpose(1, 2))


def counted(model: nn.Module, x: Tensor) -> float:
    """MACs of one sample by torch's flop counter."""
    with FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops() / 2 / len(x)


@pytest.mark.parametrize("way", WAYS)
def test_products_are_counted_whatever_came_before_them(way):
    model, x = Products(way).eval(), torch.randn(2, 8, 16)
    graph = cw.trace(model, x)
    assert graph.macs() == counted(model, x)
    assert not graph.structure.notes
    if way == "nothing":
        # Another constant comes of fewer channels.
        assert [group.name for group in graph.groups] == ["first"]
    selection = graph.select(sparsity=0.5)
    assert graph.macs(selection) == counted(graph.slim(selection), x)


def test_a_formula_for_a_custom_operator_counts(monkeypatch):
    with torch.library._scoped_library("channelwise_tests", "FRAGMENT") as library:
        library.define("outer(Tensor x) -> Tensor")
        library.impl("outer", lambda x: x[..., None] * x[..., None, :], "CompositeExplicitAutograd")
        operator = torch.ops.channelwise_tests.outer
        monkeypatch.setitem(flop_registry, operator, lambda x, out_val: 2 * out_val.numel())
        model = nn.Sequential(nn.Linear(4, 6), Call(operator), nn.Flatten(), nn.Linear(36, 2)).eval()
        assert cw.trace(model, torch.randn(5, 4)).macs() == 4 * 6 + 36 + 36 * 2


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def test_another_total_of_torch_is_told(monkeypatch):
    model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).eval(), torch.randn(3, 4)
    assert not cw.trace(model, x).structure.notes
    monkeypatch.setitem(flop_registry, aten.addmm, lambda *args, **options: 2 * 3)
    (note,) = cw.trace(model, x, verify=False).structure.notes
    assert "36 are counted here, 2 by torch.utils.flop_counter" in note
    assert "aten.addmm.default" in note


def test_other_macs_of_a_slim_model_are_told():
    class FromNothing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(4, 16), nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            square = torch.ones(x.shape[1], x.shape[1])
            return self.head(x + (square @ square).mul(0).mean())

    (note,) = cw.trace(FromNothing().eval(), torch.randn(3, 4)).structure.notes
    assert note.startswith("MACs of a slim model")


def test_recurrent_layers_are_counted_in_every_precision():
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Linear(8, 12), nn.Linear(20, 3)
            self.lstm = nn.LSTM(12, 10, 2, batch_first=True, bidirectional=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.lstm(self.embed(x))[0])

    model, x = Recurrent().eval(), torch.randn(2, 6, 8)
    expected = 6 * (8 * 12 + 2 * 40 * (12 + 10) + 2 * 40 * (20 + 10) + 20 * 3)
    assert counted(model.double(), x.double()) == expected
    for dtype in (torch.float32, torch.float64):
        graph = cw.trace(model.to(dtype), x.to(dtype))
        assert graph.macs() == expected
        selection = graph.select(sparsity=0.5) if graph.groups else None
        assert graph.macs(selection) <= expected


def dotted(x: Tensor) -> Tensor:
    return torch.stack([torch.dot(row, row) * torch.vdot(row, row) for row in x])


SELDOM = {
    "mv": (lambda x: torch.mv(x, torch.ones(6)), 6),
    "addmv": (lambda x: torch.addmv(torch.ones(len(x)), x, torch.ones(6)), 6),
    "dot": (dotted, 2 * 6),
    "addbmm": (lambda x: torch.addbmm(torch.ones(len(x), 3), x[None], torch.ones(1, 6, 3)), 6 * 3),
    "linear and gelu": (lambda x: torch._addmm_activation(torch.ones(3), x, torch.ones(6, 3), use_gelu=True), 6 * 3),
    "bilinear": (lambda x: F.bilinear(x, x[:, :4], torch.ones(5, 6, 4)), 5 * 6 * 4),
    "convolution of time": (lambda x: torch.conv_tbc(x[None], torch.ones(1, 6, 3), torch.ones(3)), 6 * 3),
    "several": (lambda x: torch.linalg.multi_dot([x, torch.ones(6, 3), torch.ones(3, 2)]), 6 * 2 + 6 * 3 * 2 / 5),
    "power": (lambda x: x @ torch.linalg.matrix_power(torch.ones(6, 6), 2), 6 * 6 + 6 * 6 * 6 / 5),
}


@pytest.mark.parametrize("name", SELDOM)
def test_products_of_every_kind_are_counted(name):
    product, macs = SELDOM[name]
    model = nn.Sequential(nn.Linear(4, 6), Call(product)).eval()
    structure = cw.trace(model, torch.randn(5, 4)).structure
    assert cost.macs(structure, structure.full()) == pytest.approx(4 * 6 + macs)
    # What torch's flop counter does not know is told.
    assert all("no formula there" in note for note in structure.notes if note.startswith("MACs of one sample"))


def test_a_bilinear_layer_is_counted():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other, self.both = nn.Linear(4, 6), nn.Linear(4, 7), nn.Bilinear(6, 7, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.both(self.one(x), self.other(x))

    graph = cw.trace(Two().eval(), torch.randn(5, 4))
    assert graph.macs() == 4 * 6 + 4 * 7 + 3 * 6 * 7
    report = check_oracle(Two(), torch.randn(5, 4), min_pruned=0)
    assert report.graph.macs() == graph.macs()
    assert any("aten._trilinear.default: 126 here, no formula there" in note for note in graph.structure.notes)


@pytest.mark.parametrize("kv", [1, 2, 4])
def test_grouped_queries_are_counted_with_all_their_heads(kv):
    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = nn.Linear(8, 32), nn.Linear(8, 8 * kv), nn.Linear(8, 8 * kv)
            self.out = nn.Linear(32, 3)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (f(x).unflatten(2, (-1, 8)).transpose(1, 2) for f in (self.q, self.k, self.v))
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
            return self.out(y.transpose(1, 2).flatten(2))

    graph = cw.trace(Grouped().eval(), torch.randn(2, 6, 8))
    each, attention = 6 * 8 * 8, 2 * 6 * 6 * 8
    assert graph.macs() == each * (4 + 2 * kv) + 4 * attention + 6 * 32 * 3
    group = graph.structure.group("q")
    assert group.size == max(kv, 4 if kv == 1 else kv)
    half = cw.Selection({group.name: np.arange(group.size // 2)}) if group.size > 1 else None
    left = 1 if kv == 1 else kv // 2
    assert graph.macs(half) == each * (2 + 2 * left) + 2 * attention + 6 * 16 * 3
