"""What a search moves in: candidates that meet the targets, and vectors in the unit cube that stand for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np


class Space(Protocol):
    """All candidates that a search may evaluate.

    A *vector* (dims,) in [0, 1] says for every group with a choice how much of it stays. *Counts* (groups,) say how
    many channels of every group stay, or which value a choice has that is not of channels.
    """

    @property
    def targets(self) -> Mapping[str, float]:
        """What all candidates have in common, by name, such as the share of the MACs that they keep."""

    @property
    def dims(self) -> int:
        """How many groups have a choice."""

    @property
    def names(self) -> Sequence[str]:
        """All groups."""

    @property
    def free(self) -> Sequence[str]:
        """The groups with a choice, in the order of vectors."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """The largest count of every group."""

    def digest(self) -> str:
        """A fingerprint of the network that the candidates are of."""

    def project(self, vector: np.ndarray) -> np.ndarray:
        """Counts (groups,) of a candidate near a vector (dims,)."""

    def encode(self, counts: np.ndarray | Mapping[str, int]) -> np.ndarray:
        """The vector (dims,) of counts, given in order or by name."""

    def candidate(self, prior: np.ndarray | Sequence[float] | Mapping[str, int]) -> np.ndarray:
        """Counts (groups,) of a candidate near what a user gives: a vector, or counts in order or by name."""

    def named(self, counts: np.ndarray) -> dict[str, int]:
        """Counts by group."""

    def shares(self, counts: np.ndarray) -> dict[str, float]:
        """The share of the full network's cost that counts keep, by cost."""

    def listed(self) -> np.ndarray | None:
        """All candidates (candidates, groups) of a small space; None if there are too many."""
