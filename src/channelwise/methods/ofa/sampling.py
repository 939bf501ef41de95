"""Which subnet comes next in training: the largest, the smallest, or a random one that all processes agree on."""

from __future__ import annotations

import random
from typing import Literal

import numpy as np
import torch

from channelwise.errors import InvalidArgumentError
from channelwise.methods.ofa.space import SearchSpace

Mode = Literal["max", "min", "random"]


class Sampler:
    """Draws subnets: by a seed, by Python's ``random``, or in distributed training by the number of draws."""

    def __init__(self) -> None:
        self._drawn = {True: 0, False: 0}

    def values(self, space: SearchSpace, mode: Mode, seed: int | None, training: bool) -> np.ndarray:
        """The values (choices,) of the next subnet. Raises InvalidArgumentError for another mode."""
        if mode == "max":
            return space.maximum
        if mode == "min":
            return space.minimum
        if mode == "random":
            return space.random(self._generator(seed, training))
        raise InvalidArgumentError(f"mode={mode!r}: must be 'max', 'min' or 'random'.")

    def _generator(self, seed: int | None, training: bool) -> random.Random:
        if seed is not None:
            if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
                raise InvalidArgumentError(f"seed={seed!r}: must be a whole number, or None.")
            return random.Random(int(seed))
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            # Not the global generator: processes seed it differently. Evaluations on one process must not count.
            self._drawn[training] += 1
            return random.Random(f"channelwise {training} {self._drawn[training]}")
        return random._inst
