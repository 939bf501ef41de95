"""Random channel importance: the baseline that any criterion has to beat."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import torch

from channelwise.errors import InvalidArgumentError
from channelwise.ranking.registry import register
from channelwise.structure import Group


class Random:
    """Random scores that depend on the seed and the group's name only, so every run chooses the same channels."""

    __name__ = "random"

    def __init__(self, seed: int = 0) -> None:
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise InvalidArgumentError(f"The seed of a random ranking must be an integer, not {seed!r}.")
        self.seed = seed

    def __call__(self, group: Group, tensors: Mapping[str, torch.Tensor]) -> np.ndarray:
        digest = hashlib.sha256(f"{self.seed}/{group.name}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "little")).random(group.size)


register("random")(Random())
