"""Small networks with structures written by hand, as a trace would find them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from channelwise.selection import Selection
from channelwise.structure import Group, ModuleSizes, Size, Slots, Structure, TensorInfo

Entry = tuple[str, int, object]
"""Tensor, axis, and slots by channel: (channels,) or (channels, multiplicity)."""


def group(
    name: str, *entries: Entry, exact: bool = True, because: str = "", parts: Sequence[int] | None = None
) -> Group:
    slots = []
    for tensor, axis, index in entries:
        array = np.asarray(index)
        slots.append(
            Slots(tensor, axis, array if array.ndim == 2 else array[:, None], "output" if axis == 0 else "input")
        )
    labels = None if parts is None else np.asarray(parts)
    return Group(name, len(slots[0].index), tuple(slots), labels, exact, because)


def structure(
    model: nn.Module,
    *groups: Group,
    blocks: Mapping[str, int] | None = None,
    calls: Mapping[str, ModuleSizes] | None = None,
    aliases: Mapping[str, str] | None = None,
) -> Structure:
    """The structure of ``model`` with the lengths of all axes worked out from the slots of the groups."""
    parameters = dict(model.named_parameters())
    tensors, sizes = {}, {}
    for name, tensor in [*parameters.items(), *model.named_buffers()]:
        count = (blocks or {}).get(name, 1)
        tensors[name] = TensorInfo(name, tuple(tensor.shape), name in parameters, name.rpartition(".")[0], count)
        axes = []
        for axis, length in enumerate(tensor.shape):
            parts = count if axis == 1 else 1
            terms = [
                (g.name, s.index.shape[1] / parts)
                for g in groups
                for s in g.slots
                if s.tensor == name and s.axis == axis
            ]
            lost = sum(m * next(g.size for g in groups if g.name == n) for n, m in terms)
            axes.append(Size(length - lost, tuple(terms)))
        sizes[name] = tuple(axes)
    return Structure(tensors, sizes, groups, (), (), calls or {}, aliases or {})


def select(found: Structure, **kept: Sequence[int]) -> Selection:
    """Keep these channels, and all of the groups not named."""
    return Selection({g.name: np.asarray(kept.get(g.name, range(g.size))) for g in found.groups})


def norm_slots(prefix: str, index: object, statistics: bool = True) -> tuple[Entry, ...]:
    names = ("weight", "bias", "running_mean", "running_var") if statistics else ("weight", "bias")
    return tuple((f"{prefix}.{name}", 0, index) for name in names)


class ConvNet(nn.Module):
    """Convolution, batch norm, convolution, flatten, linear; images (N, 3, 4, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 6, 3, padding=1)
        self.fc = nn.Linear(6 * 16, 5)
        randomise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.conv1(x)))
        return self.fc(torch.relu(self.conv2(x)).flatten(1))


def conv_net() -> tuple[ConvNet, Structure]:
    model = ConvNet()
    one, two = np.arange(8), np.arange(6)
    return model, structure(
        model,
        group("conv1", ("conv1.weight", 0, one), *norm_slots("bn", one), ("conv2.weight", 1, one)),
        group(
            "conv2", ("conv2.weight", 0, two), ("conv2.bias", 0, two), ("fc.weight", 1, np.arange(96).reshape(6, 16))
        ),
    )


CONV_NET_KEPT = {"conv1": [0, 2, 5, 6, 7], "conv2": [1, 4]}


def depthwise_net() -> tuple[nn.Module, Structure]:
    """Pointwise, depthwise with multiplier 2, pointwise."""
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 3, padding=1, groups=8), nn.Conv2d(16, 4, 1))
    one, pairs = np.arange(8), np.arange(16).reshape(8, 2)
    return model, structure(
        model,
        group(
            "stem",
            ("0.weight", 0, one),
            ("0.bias", 0, one),
            ("1.weight", 0, pairs),
            ("1.bias", 0, pairs),
            ("2.weight", 1, pairs),
        ),
    )


def grouped_net(transposed: bool = False) -> tuple[nn.Module, Structure]:
    """Pointwise, convolution in two groups whose parts keep channels of their own choice, pointwise."""
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    model = nn.Sequential(nn.Conv2d(3, 8, 1), kind(8, 6, 3, groups=2), nn.Conv2d(6, 4, 1))
    inner, outer = np.arange(8), np.arange(6)
    read, made = (0, 1) if transposed else (1, 0)
    return model, structure(
        model,
        group("stem", ("0.weight", 0, inner), ("0.bias", 0, inner), ("1.weight", read, inner), parts=[0] * 4 + [1] * 4),
        group("mid", ("1.weight", made, outer), ("1.bias", 0, outer), ("2.weight", 1, outer), parts=[0] * 3 + [1] * 3),
        blocks={"1.weight": 2},
    )


GROUPED_KEPT = {"stem": [0, 3, 5, 6], "mid": [1, 2, 3, 5]}


def randomise(model: nn.Module) -> None:
    """Values that leave no wrong path unnoticed in place of ones and zeros."""
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) * 0.8 + 0.2 - (0.6 if tensor.dim() > 1 else 0))


def image(channels: int = 3, batch: int = 2) -> Tensor:
    return torch.randn(batch, channels, 4, 4)
