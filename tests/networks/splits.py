"""Equal and unequal splits along channels, gated units."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.networks.layers import Between
from tests.networks.registry import add, network

# name: (operation, width that the head sees, prunable ones of the first convolution's 8 channels)
SPLITS = {
    "chunk": (lambda x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1].sigmoid(), 4, 8),
    "chunk_four": (lambda x: torch.cat([p * (i + 1) for i, p in enumerate(x.chunk(4, 1))], 1), 8, 8),
    "chunk_with_rest": (lambda x: torch.cat(x.chunk(3, 1)[::-1], 1), 8, 6),
    "chunk_and_cat_some": (lambda x: torch.cat([x, x.chunk(2, 1)[1].relu()], 1), 12, 8),
    "split_in_halves_of_shape": (lambda x: torch.mul(*x.split(x.shape[1] // 2, 1)), 4, 8),
    "split_by_number": (lambda x: torch.mul(*x.split(4, 1)), 4, 0),
    "split_unequal": (lambda x: torch.cat([p * p for p in x.split([2, 6], 1)], 1), 8, 0),
    "split_remainder": (lambda x: torch.cat([p.relu() for p in x.split(3, 1)], 1), 8, 0),
    "tensor_split": (lambda x: torch.cat(x.tensor_split(3, 1)[::-1], 1), 8, 0),
    "unbind": (lambda x: torch.stack(x.unbind(1), 1), 8, 0),
    "unbind_of_view": (lambda x: sum(x.view(x.size(0), 2, -1, 8, 8).unbind(1)), 4, 8),
    "glu": (lambda x: F.glu(x, 1), 4, 8),
    "maxout": (lambda x: x.view(x.size(0), -1, 2, 8, 8).amax(2), 4, 8),
    "group_mean": (lambda x: x.view(x.size(0), 2, -1, 8, 8).mean(1), 4, 8),
    "half_normalised": (lambda x: torch.cat([F.instance_norm(x.chunk(2, 1)[0]), x.chunk(2, 1)[1]], 1), 8, 8),
}
for name, (function, after, prunable) in SPLITS.items():
    add(
        f"split_{name}",
        "splits",
        lambda f=function, n=after: Between(f, after=n),
        partly={"first": prunable},
    )


@network("splits", kept=("head", "first"))
class PartialConvolution(nn.Module):
    """A convolution on the first channels by a constant count, the rest passed on (FasterNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.part, self.head = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(2, 2, 3, padding=1),
            nn.Conv2d(8, 4, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.split(self.first(x), [2, 6], dim=1)
        return self.head(torch.cat([self.part(a), b], 1))


@network(
    "splits",
    partly={"first": 12, "convs.0": 4, "convs.1": 4},
    smaller=("first.weight", "convs.0.weight", "convs.1.weight"),
)
class ChunksWithRest(nn.Module):
    """EdgeNeXt: chunks of 6, 6 and 4 channels, of which all but the last are convolved."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 1)
        self.convs = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1, groups=6) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        *parts, rest = self.first(x).chunk(3, 1)
        return self.head(torch.cat([conv(part) for conv, part in zip(self.convs, parts, strict=True)] + [rest], 1))


@network("splits")
class Res2NetBlock(nn.Module):
    """Four parts of a constant width, each added to the convolved one before."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.width = nn.Conv2d(3, 16, 3, padding=1), 4
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(self.first(x), self.width, 1)
        a = self.a(parts[0])
        b = self.b(parts[1] + a)
        return self.head(torch.cat([a, b, self.c(parts[2] + b), parts[3]], 1))


@network("splits")
class GatedConvolution(nn.Module):
    """Two halves of one convolution: features and their gate, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(8, 12, 3), nn.Conv2d(6, 4, 1)
        self.norm = nn.BatchNorm2d(12)

    def forward(self, x: Tensor) -> Tensor:
        x = F.glu(self.one(x), 1)
        features, gate = self.norm(self.two(x)).chunk(2, 1)
        return self.head(features.relu() * gate.sigmoid())


@network("splits", kept=("head",))
class SplitAttention(nn.Module):
    """ResNeSt: a grouped convolution with two parts, weighted by a softmax over the parts."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.radix = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1, groups=2)
        self.norm, self.squeeze, self.excite = nn.BatchNorm2d(16), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 16, 1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.radix(self.first(x).relu())).relu()
        n, _, h, w = x.shape
        x = x.reshape(n, 2, -1, h, w)
        gate = self.excite(self.squeeze(x.sum(1).mean((2, 3), keepdim=True)).relu())
        return self.head((x * gate.view(n, 2, -1, 1, 1).softmax(1)).sum(1))


@network("splits")
class AddOfCat(nn.Module):
    """add(cat(a, b), c): the channels of c are those of a and then those of b."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 6, 3), nn.Conv2d(3, 10, 3)
        self.head = nn.Conv2d(10, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.a(x), self.b(x)], 1) + self.c(x))
