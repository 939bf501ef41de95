"""The registry of small networks: how to build each one, its inputs, and which layers must be prunable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from channelwise.structure import Cause

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Network:
    """A small network and what must be found out about it.

    ``kept``: names of convolution or linear modules of which every output channel must stay (the model's outputs
    among them). ``partly``: of these modules exactly so many output channels must be prunable. Those of all others must
    all be. ``because``: for some layers that stay the cause, and the module in which it lies. ``smaller``: parameters
    and buffers that must have shrunk in the slim model. ``counted``: modules whose groups, if any, must be masked with
    norms that count the kept channels only; ``inexact``: those whose groups, if any, no masked model can stand for. The
    groups of all others must be exact. ``trains``: whether the network can run a training step on these inputs.
    ``telling``: whether outputs always change with the pruning: what is pruned is read, and not dead.
    """

    name: str
    family: str
    build: Callable[[], nn.Module]
    shapes: tuple[Shape, ...] = ((2, 3, 8, 8),)
    make_inputs: Callable[[], tuple[Any, ...]] | None = None
    kwargs: Callable[[], dict[str, Any]] | None = None
    kept: tuple[str, ...] = ("head",)
    partly: Mapping[str, int] = field(default_factory=dict)
    smaller: tuple[str, ...] = ()
    because: Mapping[str, tuple[Cause, str]] = field(default_factory=dict)
    counted: tuple[str, ...] = ()
    inexact: tuple[str, ...] = ()
    trains: bool = True
    telling: bool = True

    def inputs(self) -> tuple[Any, ...]:
        """Example inputs, the same at every call."""
        generator = torch.Generator().manual_seed(0)
        if self.make_inputs is not None:
            return self.make_inputs()
        return tuple(torch.randn(shape, generator=generator) for shape in self.shapes)

    def model(self) -> nn.Module:
        """A freshly built network, with the same weights at every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.build().eval()


NETWORKS: dict[str, Network] = {}


def add(name: str, family: str, build: Callable[[], nn.Module], **expectations: Any) -> None:
    """Register a network under ``name``."""
    assert name not in NETWORKS, name
    NETWORKS[name] = Network(name, family, build, **expectations)


def network(family: str, **expectations: Any) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Register the decorated module class, built without arguments, under its own name."""

    def register(cls: type[nn.Module]) -> type[nn.Module]:
        add(cls.__name__, family, cls, **expectations)
        return cls

    return register


def of_family(family: str) -> list[Any]:
    """The networks of a family as pytest parameters."""
    found = [pytest.param(n, id=n.name) for n in NETWORKS.values() if n.family == family]
    assert found, family
    return found
