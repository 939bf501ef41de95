"""Whole numbers that remember where they came from, and what follows from that for models."""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import channelwise as cw
from channelwise.testing import check_oracle, prunable_share
from channelwise.tracing.provenance import Origin, Traced, Use, trace_numbers


def number(value: int, uses: list[Use] | None = None) -> Traced:
    return Traced(value, ((Origin([] if uses is None else uses, [("", "width")]), Fraction(1)),))


@pytest.mark.parametrize(
    ("compute", "factor", "constant"),
    [
        (lambda n: n * 3, 3, 0),
        (lambda n: 3 * n, 3, 0),
        (lambda n: n // 4, Fraction(1, 4), 0),
        (lambda n: n + 2, 1, 2),
        (lambda n: 20 - n, -1, 20),
        (lambda n: (n - 4) // 2, Fraction(1, 2), -2),
        (lambda n: n + n, 2, 0),
    ],
)
def test_arithmetic_is_remembered(compute: Callable[[int], int], factor: Any, constant: Any) -> None:
    found = compute(number(8))
    assert found == compute(8)
    assert isinstance(found, Traced)
    assert ([f for _, f in found.terms], found.constant, found.exact) == ([factor], constant, True)


@pytest.mark.parametrize("compute", [lambda n: n - n, lambda n: n % 3, lambda n: -n, lambda n: n << 1, abs])
def test_what_is_made_in_another_way_is_a_plain_number(compute: Callable[[int], int]) -> None:
    found = compute(number(8))
    assert type(found) is int
    assert found == compute(8)


def test_a_rounded_quotient_says_so() -> None:
    assert not (number(9) // 2).exact


def test_an_attribute_compared_with_a_size_counts_its_labels() -> None:
    uses: list[Use] = []
    labels = np.arange(8)
    size = Traced(8, ((Origin(uses, read=labels, module="block"), Fraction(1)),))
    assert size == number(8)
    assert size != number(9)
    assert [(use.labels is labels, use.module) for use in uses] == [(True, "block")]


@dataclass
class Config:
    heads: int = 4
    sizes: list[int] = field(default_factory=lambda: [3, 5])


class Pair(NamedTuple):
    first: int
    second: int


def test_numbers_are_found_wherever_modules_keep_them() -> None:
    shared = Config()
    model = nn.Sequential(nn.Identity(), nn.Identity())
    for part in model:
        part.config = shared
    model[0].options = {"width": 6, "name": "a", "deep": SimpleNamespace(depth=7)}
    model[0].pair, model[0].flag, model[0].lone = Pair(3, 4), True, 1
    trace_numbers(model, [], nn.Module())
    places = {place for value in _traced(vars(model[0])) for place in value.origin.places}  # type: ignore[union-attr]
    assert places == {
        ("0", "config.heads"), ("1", "config.heads"), ("0", "config.sizes[0]"), ("1", "config.sizes[0]"),
        ("0", "config.sizes[1]"), ("1", "config.sizes[1]"), ("0", "options['width']"), ("0", "options['deep'].depth"),
    }  # fmt: skip
    assert model[0].pair == Pair(3, 4)
    assert model[0].config is model[1].config


def _traced(value: Any) -> list[Traced]:
    if isinstance(value, Traced):
        return [value]
    if not isinstance(value, (list, dict, Config, SimpleNamespace)):
        return []
    inside = value if isinstance(value, list) else (value if type(value) is dict else vars(value)).values()
    return [found for one in inside for found in _traced(one)]


def attend(module: Any, x: Tensor) -> Tensor:
    b, n, _ = x.shape
    q, k, v = (f(x).view(b, n, module.config.heads, -1).transpose(1, 2) for f in (module.q, module.k, module.v))
    return module.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Outside(nn.Module):
    """Heads in a config object, read by a function outside the class."""

    def __init__(self) -> None:
        super().__init__()
        self.config = Config()
        self.q, self.k, self.v, self.proj = (nn.Linear(32, 32) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return attend(self, x)


class Network(nn.Module):
    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.stem, self.parts, self.head = nn.Linear(8, 32), nn.ModuleList(parts), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for part in self.parts:
            x = x + part(x)
        return self.head(x)


def test_heads_in_a_config_follow_where_a_function_outside_reads_them(tmp_path: Path) -> None:
    x, model = torch.randn(2, 6, 8), Network(Outside(), Outside()).eval()
    check_oracle(Network(Outside(), Outside()), x)
    graph = cw.trace(model, x)
    assert prunable_share(model, graph.structure) > 0.95
    slim = graph.slim(graph.select(sparsity=0.5)).eval()
    heads = [part.config.heads for part in slim.parts]
    assert heads == [2, 2]
    assert all(type(n) is int for n in heads)
    assert [type(part.config.heads) for part in model.parts] == [int, int]
    cw.save(slim, tmp_path / "slim.safetensors")
    loaded = cw.load(Network(Outside(), Outside()), tmp_path / "slim.safetensors").eval()
    assert torch.equal(loaded(x), slim(x))


class WithMask(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.embed, self.layer, self.head = nn.Embedding(20, 32), layer, nn.Linear(32, 3)

    def forward(self, ids: Tensor, padding: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(ids), src_key_padding_mask=padding).mean(1))


def test_a_padding_mask_is_no_reason_to_keep_heads() -> None:
    ids, padding = torch.randint(1, 20, (3, 6)), torch.zeros(3, 6, dtype=torch.bool)
    padding[:, 4:] = True
    model = WithMask(nn.TransformerEncoderLayer(32, 4, 48, batch_first=True))
    graph = check_oracle(model, (ids, padding)).graph
    assert sorted(group.size for group in graph.groups) == [4, 48]


class Translates(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(8, 32), nn.Linear(8, 32), nn.Linear(32, 3)
        self.transformer = nn.Transformer(32, 4, 1, 1, 48, batch_first=True)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(self.transformer(self.a(x), self.b(y)))


def test_numbers_of_torchs_own_transformer_follow() -> None:
    model = Translates().eval()
    graph = cw.trace(model, (torch.randn(2, 6, 8), torch.randn(2, 6, 8)))
    assert prunable_share(model, graph.structure) > 0.95
    slim = graph.slim(graph.select(sparsity=0.5))
    assert slim.transformer.d_model == 16


class ByTheWidthOfItsInput(nn.Module):
    """The width of a head is computed from that of the input: heads and the stream cannot go apart."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 4
        self.q, self.k, self.v, self.proj = (nn.Linear(32, 32) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        width = c // self.num_heads
        q, k, v = (f(x).view(b, n, self.num_heads, width).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))


def test_a_number_for_two_runs_ties_them() -> None:
    graph = check_oracle(Network(ByTheWidthOfItsInput()), torch.randn(2, 6, 8)).graph
    assert [group.size for group in graph.groups] == [4]


class Mode(enum.Enum):
    WIDE = 16


class Single(Config):
    """An object that is its own copy."""

    def __deepcopy__(self, memo: Any) -> Single:
        return self


class Shares(nn.Module):
    """It keeps what a copy of it has, too."""

    def __init__(self) -> None:
        super().__init__()
        self.mode, self.log, self.config, self.width = Mode.WIDE, logging.getLogger(__name__), Single(), 16
        self.first, self.head = nn.Conv1d(3, 16, 1), nn.Conv1d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x).view(-1, self.width, x.shape[2]))


def test_what_a_copy_shares_with_the_users_model_is_left_alone() -> None:
    model = Shares()
    graph = check_oracle(model, torch.randn(2, 3, 6)).graph
    assert graph.slim(graph.select(sparsity=0.5)).width == 8
    kept = (Mode.WIDE.value, logging.root.level, model.config.heads, model.config.sizes[0], model.width)
    assert all(type(n) is int for n in kept)
    assert kept == (16, logging.root.level, 4, 3, 16)


class AsksForTheType(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.width = 16
        self.first, self.head = nn.Conv1d(3, 16, 1), nn.Conv1d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        if type(self.width) is not int:
            raise TypeError("no whole number")
        return self.head(self.first(x))


def test_code_that_wants_plain_numbers_is_traced_with_them() -> None:
    assert [group.size for group in check_oracle(AsksForTheType(), torch.randn(2, 3, 6)).graph.groups] == [16]


class Reads(nn.Module):
    """A factor that depends on the number of channels, read in a way that raises no question."""

    def __init__(self, factor: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.factor = factor
        self.first, self.head = nn.Conv1d(3, 16, 1), nn.Conv1d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(x * self.factor(self, x))


@torch.jit.script
def scripted(x: Tensor) -> float:
    return float(x.shape[1])


@pytest.mark.parametrize(
    "factor",
    [
        lambda module, x: len(x[0]),
        lambda module, x: len(module.first.weight),
        lambda module, x: torch.numel(x[0, :, 0]),
        lambda module, x: x.stride(0),
        lambda module, x: getattr(module.first, "out_channels"),  # noqa: B009
        lambda module, x: scripted(x),
        lambda module, x: torch.full((1, x.shape[1], 1), 1 / x.shape[1]),
        lambda module, x: 2 if x.shape[1] % 2 else 1,
    ],
)
def test_channels_that_the_code_counts_stay_however_it_counts_them(factor: Callable[[Any, Tensor], Any]) -> None:
    assert not check_oracle(Reads(factor), torch.randn(2, 3, 6)).graph.groups


def test_an_axis_without_labels_is_reversed_in_both_programs() -> None:
    class Turns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.head(self.second(x.flip(2) if x.shape[1] > 8 else x))

    assert [group.name for group in check_oracle(Turns(), torch.randn(2, 3, 6, 6)).graph.groups] == ["second"]


class AsksAndWrites(AsksForTheType):
    """It also writes into its own parameters."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.head.bias.mul_(1.0)
        return super().forward(x)


def test_code_that_wants_plain_numbers_may_write_into_its_parameters() -> None:
    assert [group.size for group in cw.trace(AsksAndWrites(), torch.randn(2, 3, 6)).groups] == [16]
