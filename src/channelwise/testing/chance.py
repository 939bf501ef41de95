"""Random numbers replaced by what they are on average, so that outputs in train mode can be compared."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_ALWAYS = {
    "bernoulli": 1.0,
    "exponential": 1.0,
    "geometric": 1.0,
    "log_normal": 1.0,
    "cauchy": 0.0,
    "rand": 0.5,
    "rand_like": 0.5,
    "randn": 0.0,
    "randn_like": 0.0,
}
"""What operators give that draw from one distribution, or about as much; for a chance, that nothing is dropped."""


class WithoutChance(TorchDispatchMode):
    """Operators that draw random numbers give the same numbers for every shape; those not known draw as ever."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **(kwargs or {}))
        return _on_average(func, args, kwargs or {})

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Else torch would wrap the method above for its compiler: an import of more than a second, and slower calls.
        return False


def _on_average(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    name = func.overloadpacket.__name__.rstrip("_")
    given = {**_defaults(func), **dict(zip(_names(func), args, strict=False)), **kwargs}
    if name in ("native_dropout", "_fused_dropout"):
        return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
    if name.startswith("rrelu_with_noise"):
        slope = (given["lower"] + given["upper"]) / 2
        drawn = torch.where(args[0] >= 0, args[0], args[0] * slope)
        return args[0].copy_(drawn) if func.overloadpacket.__name__.endswith("_") else drawn
    if "dropout_p" in given:
        at = _names(func).index("dropout_p")
        if at < len(args):
            return func(*args[:at], 0.0, *args[at + 1 :], **kwargs)
        return func(*args, **{**kwargs, "dropout_p": 0.0})
    drawn = func(*args, **kwargs)
    if name == "uniform":
        return drawn.fill_((given["from"] + given["to"]) / 2)
    if name == "normal" and isinstance(given.get("mean"), (int, float)):
        return drawn.fill_(given["mean"])
    if name in ("randint", "randint_like", "random"):
        return drawn.fill_(given.get("low", given.get("from")) or 0)
    if name == "randperm":
        return drawn.copy_(torch.arange(drawn.numel()))
    if name == "multinomial":
        return drawn.copy_(torch.arange(drawn.shape[-1]) % args[0].shape[-1])
    return drawn.fill_(_ALWAYS[name]) if name in _ALWAYS else drawn


@cache
def _names(func: Any) -> list[str]:
    return [argument.name for argument in func._schema.arguments]


@cache
def _defaults(func: Any) -> dict[str, Any]:
    return {a.name: a.default_value for a in func._schema.arguments if a.has_default_value()}
