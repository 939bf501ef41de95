"""A model of the scores seen so far, to choose among many children before one of them is evaluated."""

from __future__ import annotations

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.spatial.distance import cdist
from scipy.stats import norm, rankdata

# Length over which scores are alike, for each root of a dimension in log-odds, and the share of noise in the scores.
LENGTH = 0.5
NOISE = 0.15


class Surrogate:
    """A Gaussian process with a squared-exponential kernel (Rasmussen and Williams, 2006, chapter 2) over log-odds.

    Scores count by rank alone, as normal quantiles. What all groups share is left out: the projection onto the target
    takes it away.

    Arguments:
        odds: (n, dims) of the candidates with scores.
        merits: (n,) their scores, larger is better.
    """

    def __init__(self, odds: np.ndarray, merits: np.ndarray) -> None:
        self._points = _centred(odds)
        quantiles = norm.ppf((rankdata(merits) - 0.5) / len(merits))
        self._factor = cho_factor(self._kernel(self._points) + NOISE * np.eye(len(merits)), lower=True)
        self._weights = cho_solve(self._factor, quantiles)

    def predict(self, odds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(m,) expected quantiles of candidates (m, dims), and their standard deviations."""
        kernel = self._kernel(_centred(odds))
        variance = 1.0 - np.einsum("ij,ji->i", kernel, cho_solve(self._factor, kernel.T))
        return kernel @ self._weights, np.sqrt(variance.clip(0.0))

    def _kernel(self, points: np.ndarray) -> np.ndarray:
        distance = cdist(points, self._points, "sqeuclidean")
        return np.asarray(np.exp(-distance / (2 * LENGTH**2 * points.shape[1])))


def _centred(odds: np.ndarray) -> np.ndarray:
    return np.asarray(odds - odds.mean(axis=1, keepdims=True))
