"""Label rules of ATen operators, a file per family; importing this package registers them all."""

from channelwise.tracing.rules import (  # noqa: F401
    convolution,
    matmul,
    normalization,
    pointwise,
    rearrange,
    reduction,
    reshape,
    selection,
    spatial,
)
from channelwise.tracing.rules.registry import find, rule

__all__ = ["find", "rule"]
