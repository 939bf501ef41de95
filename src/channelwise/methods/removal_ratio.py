"""Targets in the words of the runners: fractions of the MACs and of the parameters to remove."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from channelwise.errors import InvalidArgumentError
from channelwise.methods.arguments import check_ratio
from channelwise.methods.options import Target

NAMES = {"macs": "removal_ratio", "params": "params_ratio"}


class Removal(Target):
    """A target that messages call by the fractions to remove."""

    @staticmethod
    def words(shares: Mapping[str, float]) -> str:
        """The fractions to remove."""
        return " and ".join(f"{NAMES[cost]}={1 - share:g}" for cost, share in shares.items())


def removal(removal_ratio: Any, params_ratio: Any = None) -> Removal:
    """The target that removes these fractions; one of them may be None."""
    given = {"removal_ratio": removal_ratio, "params_ratio": params_ratio}
    shares = {name: 1 - check_ratio(name, r) for name, r in given.items() if r is not None}
    if not shares:
        raise InvalidArgumentError(
            "Give removal_ratio (the fraction of MACs to remove), params_ratio (of parameters), or both."
        )
    return Removal(shares.get("removal_ratio"), shares.get("params_ratio"))
