"""Broadcasting, reductions and softmax."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.networks.layers import Between, BetweenLinear, Pair
from tests.networks.registry import add, network

OVER_SPACE = {
    "mean": lambda x: x * x.mean((2, 3), keepdim=True),
    "sum_of_none": lambda x: x * x.sum((-2, -1))[:, :, None, None],
    "amax": lambda x: x - x.amax((2, 3), keepdim=True),
    "amin": lambda x: x - x.amin((2, 3), keepdim=True),
    "max_with_indices": lambda x: x - x.max(3, keepdim=True)[0].min(2, keepdim=True).values,
    "var_std": lambda x: (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), keepdim=True) + 1e-5).sqrt(),
    "var_mean": lambda x: x * torch.var_mean(x, (2, 3), keepdim=True)[0],
    "norm": lambda x: x / (x.norm(dim=(2, 3), keepdim=True) + 1),
    "normalize": lambda x: F.normalize(x, dim=2),
    "logsumexp": lambda x: x - x.logsumexp((2, 3), keepdim=True),
    "prod": lambda x: x * x.sigmoid().prod(3, keepdim=True),
    "cumsum": lambda x: x.cumsum(2),
    "softmax": lambda x: x.softmax(-1),
    "log_softmax": lambda x: x.log_softmax(2),
    "softmax_flat": lambda x: x.flatten(2).softmax(-1).view_as(x),
    "argmax_mask": lambda x: x * (x.argmax(-1, keepdim=True) > 2),
    "sort": lambda x: x.sort(-1)[0],
    "topk": lambda x: x.topk(3, dim=-1)[0],
    "median": lambda x: x - x.median(-1, keepdim=True)[0],
}
for name, function in OVER_SPACE.items():
    add(
        f"over_space_{name}",
        "broadcasting",
        lambda function=function: Between(function),
    )

OVER_CHANNELS = {
    "mean": lambda x: x - x.mean(1, keepdim=True),
    "var": lambda x: x / (x.var(1, keepdim=True) + 1).sqrt(),
    "max": lambda x: x - x.amax(1, keepdim=True),
    "softmax": lambda x: x.softmax(1),
    "log_softmax": lambda x: x.log_softmax(1),
}
for name, function in OVER_CHANNELS.items():
    add(
        f"over_channels_{name}",
        "broadcasting",
        lambda function=function: Between(function),
        partly={"first": 0} if "softmax" in name else {},
        inexact=("first",),
    )
EXACT_OVER_CHANNELS = {
    "sum": lambda x: x * x.sum(1, keepdim=True),
    "norm": lambda x: x / (x.norm(dim=1, keepdim=True) + 1),
    "normalize": lambda x: F.normalize(x, dim=1),
    "mean_square_by_sum": lambda x: x * (x * x).sum(1, keepdim=True).rsqrt(),
}
for name, function in EXACT_OVER_CHANNELS.items():
    add(f"over_channels_{name}", "broadcasting", lambda function=function: Between(function))
add(
    "over_channels_cumsum",
    "broadcasting",
    lambda: Between(lambda x: x.cumsum(1)),
    kept=("head", "first"),
)
add(
    "over_channels_argmax",
    "broadcasting",
    lambda: Between(lambda x: x * x.argmax(1, keepdim=True)),
    kept=("first", "head"),
)
add("over_channels_sort", "broadcasting", lambda: Between(lambda x: x.sort(1)[0]), kept=("first", "head"))
add("over_everything", "broadcasting", lambda: Between(lambda x: x * x.sum().tanh()))
add("mean_of_everything", "broadcasting", lambda: Between(lambda x: x * x.mean()), inexact=("first",))

BROADCASTS = {
    "outer_axis": (lambda a, b: (a.unsqueeze(1) * b.unsqueeze(2)).flatten(1, 2), 64),
    "channels_of_one": (lambda a, b: a * b[:, :1], 8),
    "spatial_attention": (lambda a, b: a * b.sum(1, keepdim=True).sigmoid(), 8),
    "expand": (lambda a, b: a + b.mean((2, 3), keepdim=True).expand_as(a), 8),
    "expand_new_axis": (lambda a, b: (a[:, None].expand(-1, 3, -1, -1, -1) * 0.5).sum(1) + b, 8),
    "repeat_space": (lambda a, b: a + b.mean((2, 3), keepdim=True).repeat(1, 1, 8, 8), 8),
    "repeat_channels": (lambda a, b: torch.cat([a, b], 1) * (a + b).repeat(1, 2, 1, 1), 16),
    "repeat_interleave": (lambda a, b: (a + b).repeat_interleave(2, dim=1), 16),
}
for name, (function, after) in BROADCASTS.items():
    partly = {"outer_axis": {"a": 0, "b": 0}, "channels_of_one": {"b": 0}}.get(name, {})
    add(f"broadcast_{name}", "broadcasting", lambda f=function, n=after: Pair(f, n), partly=partly)


for how, expanded in {
    "as": lambda a, b: a.expand_as(b),
    "to_shape": lambda a, b: a.expand(b.shape),
    "to_size": lambda a, b: torch.broadcast_to(a, b.size()),
}.items():
    # A dead end: that both are as wide shows nowhere else.
    add(
        f"expanded_{how}",
        "broadcasting",
        lambda expanded=expanded: Pair(lambda a, b: torch.cat([expanded(a.mean((2, 3), keepdim=True), b), b], 1), 16),
    )
    add(
        f"expanded_{how}_from_one",
        "broadcasting",
        lambda expanded=expanded: Pair(
            lambda a, b: torch.cat([a, expanded(b.mean((1, 2, 3), keepdim=True).detach(), b)], 1), 16
        ),
        inexact=("b",),
    )


@network("broadcasting", kept=("head", "gate"))
class OneChannelGate(nn.Module):
    """A convolution of one output channel, broadcast over the channels of another."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 1, 3, padding=1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x) * self.gate(x).sigmoid())


@network("broadcasting", kept=("head", "a", "b"))
class BilinearPooling(nn.Module):
    """Outer products of features over space, by bmm, flattened before a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.pre, self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1), nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(36, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pre(x).relu()
        a, b = self.a(x).flatten(2), self.b(x).flatten(2)
        return self.head(torch.bmm(a, b.transpose(1, 2)).flatten(1))


BROADCASTS_LINEAR = {
    "global_mean": (lambda x: x.mean((2, 3)), 8),
    "global_max": (lambda x: x.amax((2, 3)), 8),
    "mean_and_max": (lambda x: torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1), 16),
    "statistics": (lambda x: torch.cat([*torch.var_mean(x, (2, 3))], 1), 16),
    "gem": (lambda x: x.clamp_min(1e-3).pow(3).mean((-2, -1)).pow(1 / 3), 8),
}
for name, (function, after) in BROADCASTS_LINEAR.items():
    add(f"pooled_{name}", "broadcasting", lambda f=function, n=after: BetweenLinear(f, n))
