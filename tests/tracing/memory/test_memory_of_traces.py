"""What a trace keeps in memory: no more pairs of labels than needed, nothing of tensors and trials that are gone."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import channelwise
from channelwise.testing import check_oracle
from channelwise.tracing.connections import components_of, spanning_forest
from channelwise.tracing.context import TraceContext
from channelwise.tracing.labels import LabelSpace, along
from tests.networks.composites import WantsTargets
from tests.networks.layers import conv_bn


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two numberings of components put the same labels together."""
    both = np.unique(np.stack([a, b]), axis=1).shape[1]
    return both == np.unique(a).size == np.unique(b).size


@pytest.mark.parametrize("seed", range(20))
def test_a_spanning_forest_connects_the_same_labels_with_the_fewest_pairs(seed: int) -> None:
    random = np.random.default_rng(seed)
    count = int(random.integers(2, 60))
    a, b = random.integers(0, count, (2, int(random.integers(1, 80))))
    first, others = spanning_forest(a, b, count)
    whole, forest = components_of((a, b), count), components_of((first, others), count)
    assert same_partition(whole, forest)
    assert others.size == count - np.unique(whole).size


def test_many_pairs_are_recorded_as_a_forest_and_mean_the_same() -> None:
    rows, columns = np.meshgrid(np.arange(100), np.arange(100, 200), indexing="ij")
    space = LabelSpace(count=300)
    space.join(rows, columns)
    assert sum(a.size for a, _ in space.pairs) == 199
    channel = space.components()
    assert np.unique(channel[:200]).size == 1
    assert np.unique(channel).size == 101


def test_condensing_changes_no_channel_and_later_joins_count() -> None:
    space = LabelSpace(count=50)
    random = np.random.default_rng(0)
    for _ in range(60):
        space.join(*random.integers(0, 40, (2, 5)))
    before = space.components().copy()
    all_of_them = space.all_pairs()
    space.condense()
    assert sum(a.size for a, _ in space.pairs) == 50 - np.unique(before).size
    assert same_partition(before, space.components())
    space.join(np.array([48]), np.array([49]))
    added = [np.append(labels, one) for labels, one in zip(all_of_them, (48, 49), strict=True)]
    assert same_partition(components_of((added[0], added[1]), 50), space.components())


def test_labels_of_tensors_that_are_gone_are_forgotten() -> None:
    context = TraceContext(LabelSpace())
    kept = torch.zeros(2)
    context.set(kept, [along(context.space.new(2), 0, 1, True)])
    labels: list[weakref.ref[np.ndarray]] = []
    gone: list[Tensor] = []
    for _ in range(2000):
        # Another tensor each time: of one at the same address the labels would be overwritten.
        gone.append(torch.zeros(2))
        its = context.space.new(2).copy()
        labels.append(weakref.ref(its))
        context.set(gone[-1], [along(its, 0, 1, True)])
        del its
        if len(gone) == 500:
            gone.clear()
    assert sum(ref() is not None for ref in labels) < 1200
    assert len(context.maps(kept)) == 1


class TalkingHeads(nn.Module):
    """Attention whose heads are mixed by a linear layer: pairs of tokens become one axis (CaiT).

    x: (batch, tokens, width).
    """

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.mix, self.proj = nn.Linear(width, 3 * width), nn.Linear(heads, heads), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        scores = self.mix((q @ k.transpose(-2, -1)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2).softmax(-1)
        return self.proj((scores @ v).transpose(1, 2).reshape(batch, tokens, width))


class Tokens(nn.Module):
    """A transformer on positions that are parameters, so that tokens have labels, too. x: (batch, 3, 32, 32)."""

    def __init__(self, depth: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 2, 2)
        self.positions = nn.Parameter(torch.randn(1, 256, 32))
        self.blocks = nn.ModuleList(TalkingHeads() for _ in range(depth))
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean(1))


@pytest.fixture
def no_collection() -> Iterator[None]:
    """As while tracing: only what nothing refers to any more goes."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Watched(Tokens):
    """A model with a hook that is a method of its own, so that it refers to itself."""

    def __init__(self) -> None:
        super().__init__(1)
        self.seen = 0
        self.head.register_forward_hook(self.count)

    def count(self, *args: object) -> None:
        self.seen += 1


MODELS = [Tokens(1), WantsTargets(), nn.Sequential(conv_bn(3, 8), conv_bn(8, 6), nn.Flatten())]


@pytest.mark.parametrize("model", MODELS)
def test_nothing_of_a_trace_waits_for_the_garbage_collector(model: nn.Module, no_collection: None) -> None:
    graph = channelwise.trace(model, torch.randn(2, 3, 32, 32))
    assert graph.groups
    left = [o for o in gc.get_objects() if type(o) in (LabelSpace, TraceContext)]
    assert not left


def test_models_of_trials_that_refer_to_themselves_do_not_pile_up(no_collection: None) -> None:
    model, x = Watched(), torch.randn(1, 3, 32, 32)
    alive: list[int] = []

    def count(module: nn.Module, args: object) -> None:
        alive.append(sum(type(o) is Watched for o in gc.get_objects()))

    model.register_forward_pre_hook(count)
    channelwise.trace(model, x)
    assert len(alive) > 6
    assert max(alive) < 7


def test_tokens_times_tokens_take_no_memory_for_each_pair() -> None:
    model, x = Tokens(), torch.randn(1, 3, 32, 32)
    channelwise.trace(Tokens(1), x)  # what is imported and cached once
    tracemalloc.start()
    graph = channelwise.trace(model, x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    pairs = 256 * 256
    # Recorded pair by pair these would be 16 bytes, twice for each of six layers in both passes.
    assert peak < 16 * pairs * 2 * 6
    assert graph.groups
    check_oracle(model, x)
