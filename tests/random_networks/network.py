"""Random networks as plain data, and the modules that are built from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tests.random_networks.block import BLOCKS, Space, conv

CHANNELS, CLASSES, BATCH = 3, 3, 2

AGAIN = "Again"
"""The step that calls the module of an earlier one, ``of``, once more."""

HEADS = ("conv", "linear", "flattened", "several", "features")


@dataclass(frozen=True)
class Step:
    """A block by its name, the activations that it reads, and its options."""

    block: str
    sources: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A network: stems on the input give the first activations, every step gives one more, a head reads the last ones.

    ``size``: of space. ``stems``: their widths. ``read``: how many activations the head reads. ``aux``: the activation
    with a head of its own in train mode, or None.
    """

    size: tuple[int, ...]
    stems: tuple[int, ...]
    steps: tuple[Step, ...] = ()
    head: str = "conv"
    read: int = 1
    aux: int | None = None


class RandomNetwork(nn.Module):
    """The network of a plan; the same plan gives the same weights."""

    def __init__(self, plan: Plan):
        super().__init__()
        self.plan, self.space = plan, Space(plan.size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.stems = nn.ModuleList(conv(self.space, CHANNELS, width) for width in plan.stems)
            self.widths = list(plan.stems)
            self.blocks = nn.ModuleList()
            for step in plan.steps:
                self.add(step)
            self._make_heads()

    def add(self, step: Step) -> None:
        """Append the block of a step."""
        if step.block == AGAIN:
            block = self.blocks[step.options["of"]]
        else:
            block = BLOCKS[step.block](self.space, *(self.widths[i] for i in step.sources), **step.options)
        self.blocks.append(block)
        self.widths.append(block.width)

    def _make_heads(self) -> None:
        last = self.widths[-self.plan.read :]
        if self.plan.head in ("linear", "flattened"):
            positions = self.space.positions if self.plan.head == "flattened" else 1
            self.heads = nn.ModuleList([nn.Linear(sum(last) * positions, CLASSES)])
        elif self.plan.head == "several":
            self.heads = nn.ModuleList(conv(self.space, width, CLASSES, 1) for width in last)
        else:
            self.heads = nn.ModuleList([conv(self.space, sum(last), CLASSES, 1)])
        aux = self.plan.aux
        self.aux = None if aux is None else conv(self.space, self.widths[aux], CLASSES, 1)

    def forward(self, x: Tensor) -> Any:
        state = [stem(x) for stem in self.stems]
        for step, block in zip(self.plan.steps, self.blocks, strict=True):
            state.append(block(*(state[i] for i in step.sources)))
        last, head = state[-self.plan.read :], self.plan.head
        if head == "several":
            found: Any = {f"map{k}": layer(y) for k, (layer, y) in enumerate(zip(self.heads, last, strict=True))}
        else:
            y = torch.cat(last, 1)
            if head == "linear":
                y = y.mean(self.space.axes)
            elif head == "flattened":
                y = y.flatten(1)
            found = self.heads[0](y)
        if head == "features":
            found = found, last[-1]
        return (found, self.aux(state[self.plan.aux])) if self.training and self.aux is not None else found

    def story(self) -> str:
        """What is computed from what, a line for every activation."""
        lines = [f"input of {self.space.size}"]
        lines += [f"{k} = a convolution of the input: {width} channels" for k, width in enumerate(self.plan.stems)]
        for k, step in enumerate(self.plan.steps, len(self.plan.stems)):
            options = "".join(f", {name}={value!r}" for name, value in step.options.items())
            lines.append(f"{k} = {step.block}({', '.join(map(str, step.sources))}{options}): {self.widths[k]} channels")
        aux = "" if self.aux is None else f", in train mode another one on {self.plan.aux}"
        return "\n".join([*lines, f"head: {self.plan.head} on the last {self.plan.read}{aux}", f"{self.plan!r}"])
