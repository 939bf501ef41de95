"""Steps that take channels apart: equal and unequal splits, gated units, slices, padding."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.random_networks.block import Block, Space, conv, fit, multiple


class Halved(Block):
    """Two equal halves, and what is done with them."""

    choices = {"how": ("product", "swap", "sum", "second_convolved", "thirds"), "split": ("chunk", "shape")}

    def __init__(self, space: Space, into: int, how: str, split: str):
        parts = 3 if how == "thirds" else 2
        wide = multiple(into, parts)
        super().__init__(space, wide if how in ("swap", "second_convolved", "thirds") else wide // 2)
        self.how, self.split, self.fit = how, split, fit(space, into, wide)
        self.conv = conv(space, wide // parts, wide // parts)

    def parts(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        return x.chunk(parts, 1) if self.split == "chunk" else x.split(x.shape[1] // parts, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fit(x)
        if self.how == "thirds":
            a, b, c = self.parts(x, 3)
            b = self.conv(b + a)
            return torch.cat([a, b, self.conv(c + b)], 1)
        a, b = self.parts(x, 2)
        if self.how == "product":
            return a * b.sigmoid()
        if self.how == "sum":
            return a + b
        return torch.cat([b, a] if self.how == "swap" else [a, self.conv(b)], 1)


class Glu(Block):
    """A gated linear unit, on the channels themselves or convolved first."""

    choices = {"convolved": (False, True), "written_out": (False, True)}

    def __init__(self, space: Space, into: int, convolved: bool, written_out: bool):
        wide = multiple(into, 2)
        super().__init__(space, wide // 2)
        self.conv = conv(space, into, wide) if convolved else fit(space, into, wide)
        self.written_out = written_out

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.written_out:
            half = x.size(1) // 2
            return x.narrow(1, 0, half) * x.narrow(1, half, half).sigmoid()
        return F.glu(x, 1)


class Split(Block):
    """Unequal parts by numbers in the code or in an attribute, one of them convolved or dropped."""

    choices = {"at": (1, 2, 3), "how": ("convolved", "swapped", "dropped", "slices"), "attribute": (False, True)}

    def __init__(self, space: Space, into: int, at: int, how: str, attribute: bool):
        wide = max(into, 2)
        at = min(at, wide - 1)
        super().__init__(space, wide - at if how == "dropped" else wide)
        self.fit, self.how, self.first = fit(space, into, wide), how, at
        self.sizes = [at, wide - at] if attribute else None
        self.conv = conv(space, at, at) if how == "convolved" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.fit(x)
        if self.how == "slices":
            a, b = x[:, : self.first], x[:, self.first :]
        else:
            a, b = x.split(self.sizes or [self.first, x.shape[1] - self.first], 1)
        if self.how == "dropped":
            return b
        return torch.cat([b, a] if self.how == "swapped" else [self.conv(a), b.relu()], 1)


class Modulated(Block):
    """Queries, contexts and a few gates of one layer, split by the width of its input, which it may check."""

    choices = {"gates": (1, 3), "width": ("read", "checked", "attribute")}

    def __init__(self, space: Space, into: int, gates: int, width: str):
        super().__init__(space, into)
        self.gates, self.how, self.width = gates, width, into
        self.project = conv(space, into, 2 * into + gates)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "checked" and x.shape[1] != self.width:
            raise ValueError(f"{self.width} channels are expected, not {x.shape[1]}")
        width = self.width if self.how == "attribute" else x.shape[1]
        query, context, gates = self.project(x).split((width, width, self.gates), 1)
        return x + query.tanh() * context * gates.mean(1, keepdim=True)


class HalfInPlace(Block):
    """Half of the channels is written into in place."""

    choices = {"how": ("relu", "assign", "scale")}

    def __init__(self, space: Space, into: int, how: str):
        super().__init__(space, into)
        self.conv, self.how = conv(space, into, into, 1), how

    def forward(self, x: Tensor) -> Tensor:
        y, half = self.conv(x), x.shape[1] // 2
        if self.how == "relu":
            y[:, :half].relu_()
        elif self.how == "scale":
            y[:, half:] *= 2
        else:
            y[:, :half] = x[:, :half] * 0.5
        return y


class Uneven(Block):
    """Parts of nearly equal size, in another order."""

    choices = {"parts": (2, 3), "how": ("chunk", "tensor_split")}

    def __init__(self, space: Space, into: int, parts: int, how: str):
        super().__init__(space, into)
        self.parts, self.how = parts, how

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([p.tanh() for p in getattr(x, self.how)(self.parts, 1)][::-1], 1)


class Pad(Block):
    """Channels of zeros or ones before and after."""

    choices = {"before": (0, 1, 2), "after": (1, 2), "value": (0.0, 1.0)}

    def __init__(self, space: Space, into: int, before: int, after: int, value: float):
        super().__init__(space, into + before + after)
        self.pad, self.value = (0, 0) * space.dims + (before, after), value

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, self.pad, value=self.value)


class PaddedShortcut(Block):
    """A wider branch, and the input padded to its width in the code's numbers or the tensors' shapes."""

    choices = {"more": (1, 2, 4), "shape": (False, True)}

    def __init__(self, space: Space, into: int, more: int, shape: bool):
        super().__init__(space, into + more)
        self.conv, self.more, self.shape = conv(space, into, self.width), more, shape

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        more = y.shape[1] - x.shape[1] if self.shape else self.more
        return y + F.pad(x, (0, 0) * self.space.dims + (0, more))


class Picked(Block):
    """Channels by index: a permutation kept in a buffer, every other one, one of them, some dropped."""

    choices = {"how": ("permutation", "every_other", "one", "unbind")}

    def __init__(self, space: Space, into: int, how: str):
        super().__init__(space, {"every_other": -(-into // 2)}.get(how, into))
        self.how = how
        self.register_buffer("order", torch.arange(into).flip(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "permutation":
            return x[:, self.order]
        if self.how == "every_other":
            return x[:, ::2]
        if self.how == "one":
            return x * x[:, 0].sigmoid().unsqueeze(1)
        return torch.stack(x.unbind(1)[::-1], 1)
