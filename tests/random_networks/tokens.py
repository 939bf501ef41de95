"""Attention, matrix products and linear layers on positions as tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.random_networks.block import WIDTHS, Block, Space, conv, divisor, fit, multiple


def tokens(x: Tensor) -> Tensor:
    """(N, C, *space) -> (N, L, C)."""
    return x.flatten(2).transpose(1, 2)


def maps(x: Tensor, like: Tensor) -> Tensor:
    """(N, L, C) -> (N, C, *space)."""
    return x.transpose(1, 2).reshape(x.shape[0], -1, *like.shape[2:])


class Mlp(Block):
    """Two linear layers on the last axis, with a layer norm before and the input added, perhaps gated."""

    choices = {"out": WIDTHS, "how": ("plain", "gated", "last_axis")}

    def __init__(self, space: Space, into: int, out: int, how: str):
        super().__init__(space, into)
        self.norm, self.how = nn.LayerNorm(into), how
        self.one, self.two = nn.Linear(into, out * (2 if how == "gated" else 1)), nn.Linear(out, into)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(self.norm(x.movedim(1, -1) if self.how == "last_axis" else tokens(x)))
        if self.how == "gated":
            a, b = y.chunk(2, -1)
            y = a * F.silu(b)
        y = self.two(F.gelu(y))
        return x + (y.movedim(-1, 1) if self.how == "last_axis" else maps(y, x))


class TokenMixing(Block):
    """Linear layers over the positions of every channel (MLP-Mixer)."""

    choices = {"out": WIDTHS}

    def __init__(self, space: Space, into: int, out: int):
        super().__init__(space, into)
        self.one, self.two = nn.Linear(space.positions, out), nn.Linear(out, space.positions)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(self.one(x.flatten(2)).relu()).view_as(x)


class Attention(Block):
    """Attention with heads: one projection or three, fused or written out, heads counted in an attribute."""

    choices = {"heads": (1, 2, 3), "each": (2, 3, 4), "qkv": ("joint", "three"), "fused": (False, True)}

    def __init__(self, space: Space, into: int, heads: int, each: int, qkv: str, fused: bool):
        super().__init__(space, into)
        self.num_heads, self.head_dim, self.fused, inner = heads, each, fused, heads * each
        self.layers = nn.ModuleList(nn.Linear(into, inner) for _ in range(3)) if qkv == "three" else None
        self.qkv = nn.Linear(into, 3 * inner) if qkv == "joint" else None
        self.proj, self.scale = nn.Linear(inner, into), each**-0.5

    def forward(self, x: Tensor) -> Tensor:
        t = tokens(x)
        n, length, _ = t.shape
        if self.qkv is not None:
            q, k, v = self.qkv(t).reshape(n, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        else:
            assert self.layers is not None
            q, k, v = (f(t).view(n, length, self.num_heads, -1).transpose(1, 2) for f in self.layers)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1) @ v
        return x + maps(self.proj(y.transpose(1, 2).reshape(n, length, -1)), x)


class NonLocal(Block):
    """Attention between positions of convolved features, with a head for every position (non-local network)."""

    choices = {"out": WIDTHS, "scaled": (False, True)}

    def __init__(self, space: Space, into: int, out: int, scaled: bool):
        super().__init__(space, into)
        self.query, self.key, self.value = (conv(space, into, n, 1) for n in (out, out, out + 1))
        self.proj, self.scaled = conv(space, out + 1, into, 1), scaled

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).flatten(2) for f in (self.query, self.key, self.value))
        scores = q.transpose(1, 2) @ k
        if self.scaled:
            scores = scores / q.shape[1] ** 0.5
        y = v @ scores.softmax(-1).transpose(1, 2)
        return x + self.proj(y.unflatten(2, self.space.size))


class ChannelAttention(Block):
    """Attention between channels, by a softmax or without one."""

    choices = {"softmax": (False, True)}

    def __init__(self, space: Space, into: int, softmax: bool):
        super().__init__(space, into)
        self.softmax = softmax

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        gram = torch.bmm(flat, flat.transpose(1, 2)) / flat.shape[2]
        if self.softmax:
            gram = gram.softmax(-1)
        return (gram @ flat).reshape(x.shape).tanh()


class MultiHead(Block):
    """torch's own attention module."""

    choices = {"heads": (1, 2, 3)}

    def __init__(self, space: Space, into: int, heads: int):
        wide = multiple(into, heads)
        super().__init__(space, wide)
        self.fit = fit(space, into, wide)
        self.attention = nn.MultiheadAttention(wide, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fit(x)
        t = tokens(x)
        return x + maps(self.attention(t, t, t, need_weights=False)[0], x)


class Products(Block):
    """Sums of products over channels: by einsum, bilinear, by groups."""

    einsum = True
    choices = {"how": ("einsum", "groups", "outer"), "out": WIDTHS}

    def __init__(self, space: Space, into: int, how: str, out: int):
        groups = divisor(into, 3)
        super().__init__(space, {"einsum": out, "groups": groups * out, "outer": 9}[how])
        self.how, self.groups = how, groups
        self.weight = nn.Parameter(
            torch.randn(groups, out, into // groups) if how == "groups" else torch.randn(out, into)
        )
        self.a, self.b = conv(space, into, 3, 1), conv(space, into, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "einsum":
            return torch.einsum("ncl,dc->ndl", x.flatten(2), self.weight).unflatten(2, self.space.size)
        if self.how == "outer":
            return (self.a(x).unsqueeze(2) * self.b(x).unsqueeze(1)).flatten(1, 2)
        parts = x.flatten(2).unflatten(1, (self.groups, -1))
        return torch.einsum("ngcl,gdc->ngdl", parts, self.weight).reshape(x.shape[0], -1, *x.shape[2:])


class Recurrent(Block):
    """A recurrent layer over the positions, of which the engine knows nothing."""

    choices = {"out": (3, 4)}

    def __init__(self, space: Space, into: int, out: int):
        super().__init__(space, out)
        self.rnn = nn.GRU(into, out, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return maps(self.rnn(tokens(x))[0], x)
