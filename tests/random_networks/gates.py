"""Gates and reductions: squeeze and excitation, attention over space, flattened features, statistics over channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.random_networks.block import MOST, WIDTHS, Block, Space, conv, divisor, fit, pooled, spread


class Gate(Block):
    """Squeeze and excitation by convolutions or linear layers, views written in several ways."""

    choices = {"out": WIDTHS, "how": ("conv", "linear", "view_shape", "view_attribute", "added", "squeezed")}

    def __init__(self, space: Space, into: int, out: int, how: str):
        # squeeze() would drop the axis of one channel, so that not even the network itself runs.
        width = max(into, 2) if how == "squeezed" else into
        super().__init__(space, width)
        self.how, self.channels, self.fit = how, width, fit(space, into, width)
        if how == "conv":
            self.squeeze, self.excite = conv(space, width, out, 1), conv(space, out, width, 1)
        else:
            self.squeeze, self.excite = nn.Linear(width, out), nn.Linear(out, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fit(x)
        if self.how == "conv":
            return x * self.excite(self.squeeze(pooled(x, keepdim=True)).relu()).sigmoid()
        ones = (1,) * self.space.dims
        if self.how == "view_shape":
            n, c = x.shape[:2]
            return x * self.excite(self.squeeze(pooled(x).view(n, c)).relu()).view(n, c, *ones).sigmoid()
        mean = pooled(x, keepdim=True).squeeze() if self.how == "squeezed" else pooled(x)
        gate = self.excite(self.squeeze(mean).relu())
        if self.how == "view_attribute":
            return x * gate.view(-1, self.channels, *ones).sigmoid()
        return x + spread(gate, x).expand_as(x) if self.how == "added" else x * spread(gate, x).sigmoid()


class ChannelConvolution(Block):
    """A gate from a convolution along the channels (ECA)."""

    def __init__(self, space: Space, into: int):
        super().__init__(space, into)
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * spread(self.conv(pooled(x).unsqueeze(1)).squeeze(1), x).sigmoid()


class SpatialGate(Block):
    """A gate for every position from statistics over the channels (CBAM)."""

    choices = {"how": ("mean_max", "norm", "logsumexp", "var", "unbiased", "sum", "softmax_of_sum")}

    def __init__(self, space: Space, into: int, how: str):
        super().__init__(space, into)
        self.how = how
        self.conv = conv(space, 2 if how == "mean_max" else 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "mean_max":
            found = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        elif self.how == "norm":
            found = x.square().sum(1, keepdim=True)
        elif self.how == "softmax_of_sum":
            found = x.sum(1, keepdim=True).flatten(2).softmax(-1).view(x.shape[0], 1, *x.shape[2:])
        elif self.how in ("var", "unbiased"):
            found = x.var(1, correction=int(self.how == "unbiased"), keepdim=True)
        else:
            found = getattr(x, self.how)(1, keepdim=True)
        return x * self.conv(found).sigmoid()


class Flattened(Block):
    """All positions of all channels into a linear layer, whose outputs are a gate or a map."""

    choices = {"how": ("gate", "map", "reshape", "permuted"), "hidden": (5, 8)}

    def __init__(self, space: Space, into: int, how: str, hidden: int):
        narrow = min(into, 8)
        super().__init__(space, narrow)
        self.how, self.fit = how, fit(space, into, narrow)
        self.one = nn.Linear(narrow * space.positions, hidden)
        self.two = nn.Linear(hidden, narrow * (space.positions if how == "map" else 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.fit(x)
        if self.how == "permuted":
            flat = x.movedim(1, -1).flatten(1)
        else:
            flat = x.reshape(x.shape[0], -1) if self.how == "reshape" else torch.flatten(x, 1)
        y = self.two(self.one(flat).relu())
        if self.how == "map":
            return x + y.view(x.shape[0], -1, *self.space.size)
        return x * spread(y, x).sigmoid()


class Softmax(Block):
    """Softmax over channels, over positions, or over groups of channels."""

    choices = {"how": ("channels", "positions", "groups", "log")}

    def __init__(self, space: Space, into: int, how: str):
        super().__init__(space, into)
        self.how = how
        self.groups = divisor(into, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "channels":
            return x.softmax(1)
        if self.how == "log":
            return F.log_softmax(x, -1)
        if self.how == "positions":
            return x.flatten(2).softmax(2).view_as(x)
        return x.view(x.shape[0], self.groups, -1, *x.shape[2:]).softmax(1).view_as(x)


class Accumulated(Block):
    """Cumulative sums, over space or over channels, and products."""

    choices = {"how": ("space", "channels")}

    def __init__(self, space: Space, into: int, how: str):
        super().__init__(space, into)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(-1 if self.how == "space" else 1) * 0.5


class GroupReduced(Block):
    """Channels viewed as groups, and reduced over the groups or within them."""

    choices = {"groups": (2, 3), "how": ("sum", "mean", "amax"), "axis": (1, 2), "attribute": (False, True)}

    def __init__(self, space: Space, into: int, groups: int, how: str, axis: int, attribute: bool):
        groups = divisor(into, groups)
        super().__init__(space, into // groups if axis == 1 else groups)
        self.groups, self.how, self.axis = groups, how, axis
        self.each = into // groups if attribute else -1

    def forward(self, x: Tensor) -> Tensor:
        parts = x.view(x.shape[0], self.groups, self.each, *x.shape[2:])
        return getattr(parts, self.how)(self.axis)


class Repeated(Block):
    """Channels repeated: each several times, or all one after another, or expanded from their mean."""

    choices = {"how": ("each", "all", "mean")}

    def __init__(self, space: Space, into: int, how: str):
        narrow = min(into, MOST)
        super().__init__(space, into if how == "mean" else 2 * narrow)
        self.how, self.fit = how, fit(space, into, into if how == "mean" else narrow)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fit(x)
        if self.how == "each":
            return x.repeat_interleave(2, 1)
        if self.how == "all":
            return x.repeat(1, 2, *(1,) * self.space.dims)
        return x - x.mean(1, keepdim=True).expand(-1, x.shape[1], *(-1,) * self.space.dims)
