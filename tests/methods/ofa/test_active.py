"""The active slots of a supernet's tensors are those that pruning to the same channels keeps: one rule for both."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from channelwise.methods.ofa import OFAPruner
from channelwise.methods.ofa.active import Part, take_active
from channelwise.structure import TensorInfo
from channelwise.surgery.cuts import Cut, cut_tensors
from channelwise.surgery.slicing import take
from channelwise.tensors import named_tensors
from tests.methods.ofa.supernets import INPUTS


class Layers(nn.Module):
    """Three convolutions, of which the subclasses make something."""

    def __init__(self, middle: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.first, self.middle, self.norm, self.last = nn.Conv2d(3, 16, 3, padding=1), middle, nn.BatchNorm2d(16), last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.middle(self.first(x).relu())).relu())


class Concatenated(Layers):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(32, 4, 1, groups=2))
        self.both = nn.BatchNorm2d(32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.last(self.both(torch.cat([x, self.norm(self.middle(x))], 1)).relu())


class Shared(Layers):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(16, 16, 1), nn.Conv2d(16, 4, 1))
        self.twin = nn.Conv2d(16, 16, 1)
        self.twin.weight = self.middle.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.last(self.norm(self.middle(x) + self.twin(x.flip(-1))).relu())


NETWORKS = {
    "grouped": lambda: Layers(nn.Conv2d(16, 16, 3, padding=1, groups=4), nn.Conv2d(16, 4, 1)),
    "transposed, grouped": lambda: Layers(nn.ConvTranspose2d(16, 16, 2, groups=2), nn.Conv2d(16, 4, 1)),
    "depthwise": lambda: Layers(nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 4, 1)),
    "concatenated": Concatenated,
    "shared": Shared,
}
VIEWS = {"depthwise", "shared"}


@pytest.mark.parametrize("name", NETWORKS)
def test_active_tensors_are_those_of_the_same_selection(name: str) -> None:
    torch.manual_seed(0)
    pruner = OFAPruner(NETWORKS[name](), INPUTS, quiet=True)
    model = pruner.ofa_model([0.25, 0.5, 0.75, 1], 1, auto_add_excludes=False)
    supernet, structure = pruner._supernet_of(model), pruner.search_space.structure
    modules, tensors = dict(model.named_modules()), named_tensors(model)
    narrowed = set()
    for seed in range(6):
        _, setting = pruner.sample_subnet(model, seed=seed)
        values = pruner.search_space.values(setting)
        cuts = cut_tensors(structure, supernet.selection(values))
        for path, tensor in tensors.items():
            owner, _, local = path.rpartition(".")
            part = getattr(modules[owner], "_active", {}).get(local)
            cut = cuts.of(path)
            assert torch.equal(take_active(tensor, part), tensor if cut is None else take(tensor, cut)), path
            narrowed |= {path} if cut is not None else set()
            if name in VIEWS:
                assert part is None or part.is_view, f"{path} is copied where a prefix would do"
    assert {"first.weight", "middle.weight", "norm.weight", "norm.running_var", "last.weight"} <= narrowed


@pytest.mark.parametrize(
    ("kept", "columns", "expected"),
    [
        ({0: [0, 1, 2]}, None, (((0, 3),), [], False)),
        ({0: [0, 2], 1: [0, 1]}, None, (((1, 2),), [0], False)),
        ({1: [0, 3]}, [[0], [0], [0], [0]], (((1, 1),), [], False)),
        ({1: [0, 4]}, [[0], [0], [1], [1]], ((), [], True)),
    ],
    ids=["prefix", "prefix and index", "prefix of columns", "columns"],
)
def test_prefixes_are_taken_as_views(kept: Any, columns: Any, expected: Any) -> None:
    info = TensorInfo("weight", (4, 3), True, "", 1 if columns is None else 2)
    made = {axis: np.array(slots) for axis, slots in kept.items()}
    part = Part.of(Cut(info, made, None if columns is None else np.array(columns)))
    assert (part.prefix, list(part.index), part.columns is not None) == expected
    assert part.is_view == (not expected[1] and not expected[2])
