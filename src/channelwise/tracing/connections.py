"""Connected components of pairs of labels, and the fewest pairs that connect the same."""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

Pairs = tuple[np.ndarray, np.ndarray]
"""Which labels meet: (k,) and (k,)."""


def components_of(pairs: Pairs, count: int) -> np.ndarray:
    """The component of every label below ``count``, (count,)."""
    graph = coo_matrix((np.ones(pairs[0].size, np.int8), pairs), shape=(count, count))
    return connected_components(graph, directed=False)[1]


def spanning_forest(a: np.ndarray, b: np.ndarray, count: int) -> Pairs:
    """Pairs that connect the same labels below ``count`` as these, none of them superfluous."""
    seen = np.zeros(count, bool)
    seen[a] = seen[b] = True
    labels = np.flatnonzero(seen).astype(a.dtype)
    index = np.zeros(count, a.dtype)
    index[labels] = np.arange(labels.size, dtype=a.dtype)
    first, others = forest_of(components_of((index[a], index[b]), labels.size))
    return labels[first], labels[others]


def forest_of(component: np.ndarray) -> Pairs:
    """The pairs of a forest with these components: every label but the first of each component, with the first."""
    first = np.unique(component, return_index=True)[1][component]
    others = np.flatnonzero(first != np.arange(component.size))
    return first[others], others
