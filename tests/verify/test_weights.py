"""Rules: what a parametrisation gives in a slim model is a slice of what it was, or its channels stay."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import channelwise as cw


class Unit(nn.Module):
    """Divides every row of a weight by its norm, or all of it by one."""

    def __init__(self, rows: bool) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, w: Tensor) -> Tensor:
        return w / (w.norm(dim=1, keepdim=True) if self.rows else w.norm())


class Doubled(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return 2 * w


def unit(rows: bool) -> Callable[[nn.Linear], nn.Module]:
    return lambda layer: parametrize.register_parametrization(layer, "weight", Unit(rows))


def doubled(layer: nn.Linear) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", Doubled())


def both(layer: nn.Linear) -> nn.Module:
    return parametrizations.spectral_norm(parametrizations.weight_norm(layer))


@pytest.mark.parametrize(
    ("change", "prunable"),
    [
        (both, []), (unit(rows=True), ["2"]), (unit(rows=False), []),
        (doubled, ["0", "2"]), (parametrizations.weight_norm, ["0", "2"]), (parametrizations.spectral_norm, ["0", "2"]),
    ],
)  # fmt: skip
def test_weights_are_slices(change: Callable[[nn.Linear], nn.Module], prunable: list[str]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4))
    change(model[2])  # type: ignore[arg-type]
    model.eval()
    weight = model[2].weight.detach().clone()
    graph = cw.trace(model, torch.randn(6, 4))
    assert [group.name.split(".")[0] for group in graph.groups] == prunable
    if not prunable:
        return
    selection = graph.select(sparsity=0.5)
    kept = {group.name.split(".")[0]: selection.kept[group.name] for group in graph.groups}
    rows, columns = kept.get("2", range(12)), kept.get("0", range(16))
    assert torch.allclose(graph.slim(selection)[2].weight, weight[list(rows)][:, list(columns)], atol=1e-6)
