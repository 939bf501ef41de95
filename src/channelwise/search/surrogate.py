"""What the scores seen so far say about candidates that nobody has evaluated."""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist
from scipy.stats import norm, rankdata

# Length over which scores are alike, for each root of a dimension in log-odds, and the share of noise in the scores.
LENGTH = 0.5
NOISE = 0.15
# Where more candidates than this have scores, only the best and the latest count: the work grows with the third power.
MOST = 200


def expectation(odds: np.ndarray, merits: np.ndarray, unknown: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Expected scores of candidates ``unknown`` (m, dims), and how sure that is: means and standard deviations (m,).

    A Gaussian process with a squared-exponential kernel (Rasmussen and Williams, 2006, algorithm 2.1) on candidates at
    log-odds ``odds`` (n, dims) with scores ``merits`` (n,), larger is better. Scores count by rank alone, as normal
    quantiles. What all groups of a candidate share is left out: the projection onto the target takes it away.
    """
    best = np.argsort(-merits, kind="stable")[: MOST // 2]
    used = np.union1d(best, np.arange(len(merits))[-(MOST - len(best)) :])
    points, others = _centred(odds[used]), _centred(unknown)
    quantiles = norm.ppf((rankdata(merits[used]) - 0.5) / len(used))
    known = _alike(points, points) + NOISE * np.eye(len(used))
    across, whitened = _factored(known, np.vstack([_alike(others, points), quantiles]))
    return (across * whitened).sum(axis=1), np.sqrt((1.0 - (across**2).sum(axis=1)).clip(0.0))


def _factored(matrix: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``rows[:-1] @ inv(L).T`` and ``rows[-1] @ inv(L).T`` with the Cholesky factor L of ``matrix`` (n, n).

    Without BLAS: its threads wait for each other for longer than all of this takes when evaluations use every core.
    """
    size = len(matrix)
    work = np.vstack([matrix, rows])
    for j in range(size):
        work[j:, j] /= np.sqrt(work[j, j])
        work[j + 1 :, j + 1 :] -= work[j + 1 :, j, None] * work[j + 1 : size, j]
    return work[size:-1], work[-1]


def _alike(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    return np.asarray(np.exp(-cdist(one, two, "sqeuclidean") / (2 * LENGTH**2 * one.shape[1])))


def _centred(odds: np.ndarray) -> np.ndarray:
    return np.asarray(odds - odds.mean(axis=1, keepdims=True))
