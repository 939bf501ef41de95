"""A rule that fails is our fault, and told as such."""

import pytest
import torch
from torch import nn

import channelwise as cw
from channelwise.structure import Cause
from channelwise.tracing.dispatch import _lookup
from channelwise.tracing.rules import registry
from tests.networks.expectations import why


@pytest.fixture(autouse=True)
def _rules_are_looked_up_again():
    _lookup.cache_clear()
    yield
    _lookup.cache_clear()


def test_a_rule_that_fails_is_no_constant_of_the_user(monkeypatch, caplog):
    def fails(ctx, out, x):
        raise ValueError("no")

    monkeypatch.setitem(registry._RULES, torch.ops.aten.tril, fails)
    model = nn.Sequential(nn.Linear(4, 8), Lower(), nn.Linear(8, 2)).eval()
    graph = cw.trace(model, torch.randn(3, 4))
    assert why(graph, "0") == {(Cause.NO_RULE, "1")}
    assert "the rule for aten.tril.default failed" in caplog.text
    assert graph.macs() == 4 * 8 + 8 * 2


@pytest.mark.parametrize("form", [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr])
def test_sparse_tensors_made_in_forward_are_followed(form):
    model = Mixed(form).eval()
    x = torch.randn(3, 4)
    graph = cw.trace(model, x)
    selection = graph.select(sparsity=0.5)
    slim = graph.slim(selection)
    assert slim.a.out_features == 4
    torch.testing.assert_close(slim(x), graph.sparse(selection).eval()(x))


class Mixed(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.a, self.b, self.form = nn.Linear(4, 8), nn.Linear(8, 2), form

    def forward(self, x):
        return self.b(self.form(torch.eye(3)) @ self.a(x).relu())


class Lower(nn.Module):
    def forward(self, x):
        return x.tril()
