"""Random compositions of channel operations: constraints that meet in ways no hand-written network thinks of."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

State = list[Tensor]


class Step(nn.Module):
    """Layers and a function of all activations so far that gives the next one."""

    def __init__(self, function: Callable[..., Tensor], sources: list[int], *layers: nn.Module):
        super().__init__()
        self.function, self.sources, self.layers = function, sources, nn.ModuleList(layers)

    def forward(self, state: State) -> Tensor:
        return self.function(*self.layers, *(state[i] for i in self.sources))


def shuffled(x: Tensor, groups: int) -> Tensor:
    """Channel shuffle by views."""
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class RandomComposition(nn.Module):
    """A graph of random steps on activations of equal spatial size whose widths are multiples of 4."""

    def __init__(self, seed: int, steps: int = 7):
        super().__init__()
        pick = random.Random(seed)
        self.stem = nn.ModuleList(nn.Conv2d(3, width, 3, padding=1) for width in (16, pick.choice((8, 16, 24))))
        widths = [conv.out_channels for conv in self.stem]
        self.steps = nn.ModuleList()
        self.story: list[str] = []
        while len(self.steps) < steps:
            name = pick.choice(KINDS)
            made = make(name, pick, widths)
            if made is None:
                continue
            step, width = made
            self.story.append(f"{len(widths)} = {name}{step.sources}: {width}")
            self.steps.append(step)
            widths.append(width)
        last = widths[-3:]
        self.head = nn.Conv2d(sum(last), 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        state = [conv(x) for conv in self.stem]
        for step in self.steps:
            state.append(step(state))
        return self.head(torch.cat(state[-3:], 1))


KINDS = (
    "conv", "conv", "grouped", "depthwise", "twice", "add", "mul", "cat", "cat", "chunk_mul", "chunk_swap", "glu",
    "shuffle", "shuffle", "norm", "gate", "stack", "pixel", "unshuffle", "prelu", "transposed", "flip", "pad",
    "half_conv", "slices", "group_norm", "input_cat", "gram", "interleave", "softmax", "layer_norm", "view_groups",
)  # fmt: skip


def make(name: str, pick: random.Random, widths: list[int]) -> tuple[Step, int] | None:
    """A step of this kind on randomly picked activations, and its width; None if no activation suits."""
    i = pick.choice(range(max(0, len(widths) - 4), len(widths)))
    c = widths[i]
    groups = pick.choice((2, 4))
    same = [k for k, width in enumerate(widths) if width == c and k != i]
    if name in ("add", "mul", "stack", "interleave") and not same:
        return None
    if c % 4 or (c > 64 and name in ("cat", "stack", "interleave", "twice", "unshuffle")):
        return None
    j = pick.choice(same) if same else i
    other = pick.choice(range(len(widths)))
    out = pick.choice((8, 16, 24))
    half = c // 2
    if name == "conv":
        return Step(lambda m, b, x: b(m(x)).relu(), [i], nn.Conv2d(c, out, 3, padding=1), nn.BatchNorm2d(out)), out
    if name == "grouped":
        return Step(lambda m, x: m(x).relu(), [i], nn.Conv2d(c, out, 3, padding=1, groups=groups)), out
    if name == "depthwise":
        return Step(lambda m, x: m(x), [i], nn.Conv2d(c, c, 3, padding=1, groups=c)), c
    if name == "twice":
        return Step(lambda m, x: m(x), [i], nn.Conv2d(c, 2 * c, 3, padding=1, groups=c)), 2 * c
    if name == "transposed":
        return Step(lambda m, x: m(x), [i], nn.ConvTranspose2d(c, out, 3, padding=1, groups=groups)), out
    if name == "half_conv":
        layer = nn.Conv2d(half, half, 3, padding=1)
        return Step(lambda m, x: torch.cat([x.chunk(2, 1)[0], m(x.chunk(2, 1)[1])], 1), [i], layer), c
    if name == "norm":
        return Step(lambda m, x: m(x), [i], nn.BatchNorm2d(c)), c
    if name == "group_norm":
        return Step(lambda m, x: m(x), [i], nn.GroupNorm(groups, c)), c
    if name == "layer_norm":
        return Step(lambda m, x: m(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), [i], nn.LayerNorm(c)), c
    if name == "prelu":
        return Step(lambda m, x: m(x), [i], nn.PReLU(c)), c
    if name == "gate":
        layers = nn.Conv2d(c, 4, 1), nn.Conv2d(4, c, 1)
        return Step(lambda a, b, x: x * b(a(x.mean((2, 3), keepdim=True)).relu()).sigmoid(), [i], *layers), c
    if name == "cat":
        return Step(lambda a, b: torch.cat([a, b], 1), [i, other]), c + widths[other]
    if name == "gram":
        return Step(lambda a, b: a * (a * a).sum(1, keepdim=True).sigmoid() + 0 * b.sum(), [i, other]), c
    if name == "pad":
        return Step(lambda x: F.pad(x, (0, 0, 0, 0, 2, 2)), [i]), c + 4
    if name == "input_cat":
        return Step(lambda x: torch.cat([torch.ones_like(x[:, :1]) * 0.3, x, x.mean(1, keepdim=True)], 1), [i]), c + 2
    if name == "pixel":
        return Step(lambda x: F.avg_pool2d(F.pixel_shuffle(x, 2), 2), [i]), c // 4
    if name == "unshuffle":
        return Step(lambda x: F.interpolate(F.pixel_unshuffle(x, 2), scale_factor=2), [i]), c * 4
    functions: dict[str, tuple[Callable[..., Tensor], list[int], int]] = {
        "add": (lambda a, b: a + b, [i, j], c),
        "mul": (lambda a, b: a * b, [i, j], c),
        "stack": (lambda a, b: torch.stack([a, b], 1).flatten(1, 2), [i, j], 2 * c),
        "interleave": (lambda a, b: torch.stack([a, b], 2).flatten(1, 2), [i, j], 2 * c),
        "chunk_mul": (lambda x: torch.mul(*x.chunk(2, 1)), [i], half),
        "chunk_swap": (lambda x: torch.cat(x.chunk(2, 1)[::-1], 1), [i], c),
        "glu": (lambda x: F.glu(x, 1), [i], half),
        "shuffle": (lambda x: shuffled(x, groups), [i], c),
        "flip": (lambda x: x.flip(1), [i], c),
        "slices": (lambda x: torch.cat([x[:, :4], x[:, 4:].relu()], 1), [i], c),
        "softmax": (lambda x: x.softmax(1), [i], c),
        "view_groups": (lambda x: x.view(x.size(0), groups, -1, 8, 8).sum(1), [i], c // groups),
    }
    function, sources, width = functions[name]
    if width < 4 or width % 4:
        return None
    return Step(function, sources), width
