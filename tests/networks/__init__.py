"""Small networks, at least one for every rule of the tracer and for every case known to break pruning tools."""

from tests.networks import (  # noqa: F401  (importing registers)
    architectures,
    attention,
    broadcasting,
    composites,
    convolutions,
    elementwise,
    hidden,
    inputs_outputs,
    norms,
    numbers,
    other_ways,
    regions,
    shapes,
    spatial,
    splits,
    unknown,
    verified,
    weights,
)
from tests.networks.registry import NETWORKS, Network, of_family

__all__ = ["NETWORKS", "Network", "of_family"]
