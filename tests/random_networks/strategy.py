"""Hypothesis strategies: plans of random networks, and selections on them."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from tests.random_networks import convolutions, gates, joins, norms, shuffles, spatial, splits, tokens, weights
from tests.random_networks.block import BLOCKS, WIDTHS
from tests.random_networks.network import AGAIN, HEADS, Plan, RandomNetwork, Step
from tests.random_networks.selections import HOWS, Choice

FAMILIES = (convolutions, joins, splits, norms, gates, shuffles, tokens, spatial, weights)
"""The modules whose blocks are drawn."""

SIZES = ((4, 4), (4, 2), (2, 6), (6,), (8,), (2, 2, 2), (2, 4, 2))
STEPS = (1, 2, 3, 4, 5, 6, 4, 5, 6, 7, 8)
MOST_CHANNELS = 64


def _names(dims: int) -> list[str]:
    """All blocks for these dimensions, and the step that calls one again; a plain convolution is the simplest."""
    here = [f.__name__ for f in FAMILIES]
    found = [n for n, c in BLOCKS.items() if c.__module__ in here and dims in c.dims]
    return [*sorted(found, key=lambda name: name != "Conv"), AGAIN]


@st.composite
def steps(draw: st.DrawFn, network: RandomNetwork) -> Step | None:
    """One more step of a network; None if the module to be called again fits no activation."""
    name = draw(st.sampled_from(_names(network.space.dims)))
    count = len(network.widths)
    # Near activations are read more often, so that long chains arise; a shrunk network is a chain.
    source = count - 1 - draw(st.integers(0, min(count, 4) - 1))
    if name == AGAIN:
        fitting = [
            k
            for k, step in enumerate(network.plan.steps)
            if len(step.sources) == 1 and network.widths[step.sources[0]] == network.widths[source]
        ]
        return Step(AGAIN, (source,), {"of": draw(st.sampled_from(fitting))}) if fitting else None
    cls = BLOCKS[name]
    sources = (source, *(draw(st.integers(0, count - 1)) for _ in range(cls.inputs - 1)))
    return Step(name, sources, {option: draw(st.sampled_from(values)) for option, values in cls.choices.items()})


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """A whole network."""
    widths = st.sampled_from(WIDTHS)
    plan = Plan(draw(st.sampled_from(SIZES)), tuple(draw(st.lists(widths, min_size=1, max_size=2))))
    network = RandomNetwork(plan)
    for _ in range(draw(st.sampled_from(STEPS))):
        step = draw(steps(network))
        if step is None:
            continue
        network.add(step)
        if network.widths[-1] > MOST_CHANNELS:
            del network.widths[-1], network.blocks[-1]
            continue
        network.plan = replace(network.plan, steps=(*network.plan.steps, step))
    count = len(network.widths)
    return replace(
        network.plan,
        head=draw(st.sampled_from(HEADS)),
        read=draw(st.integers(1, min(count, 3))),
        aux=draw(st.none() | st.integers(0, count - 1)),
    )


def choices() -> st.SearchStrategy[Choice]:
    """How channels are selected."""
    return st.builds(Choice, st.sampled_from(HOWS), st.sampled_from((0.5, 0.25, 0.75)), st.integers(0, 3))
