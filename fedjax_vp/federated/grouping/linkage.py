"""Agglomerative clustering from pairwise distances, and the bipartition of clustered federated learning.

    c1, c2 = argmin_{c1 u c2 = c} max_{i in c1, j in c2} S_ij                                      (1)

Sattler et al. 2021 (see `similarity.py`), Algorithm 1: merge the most similar pairs until two sets are left,
which is single linkage. It attains (1): every bipartition is crossed by an edge of the maximum spanning tree,
so its largest cross similarity is at least the tree's least edge, and removing that edge leaves no larger one
across. The released code takes complete linkage instead, which does not attain (1) but resists chains of
intermediate members.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float, Int, Real
from scipy.cluster import hierarchy
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import squareform

from fedjax_vp.federated.grouping.labels import renumber

Linkage = Literal["single", "complete", "average", "ward"]


def agglomerate(
    distance: Real[np.ndarray, "n n"],
    linkage: Linkage,
    threshold: float | None = None,
    num_groups: int = 1,
) -> Int[np.ndarray, "n"]:
    """Merges the nearest groups until they are far apart, or few.

    Args:
        distance: symmetric; for `ward`, Euclidean.
        linkage: distance of two groups, by their members.
        threshold: groups are merged while nearer than this.
        num_groups: without a threshold: merges until so many are left.

    Returns:
        Labels, int32.
    """
    count = len(distance)
    if count < 2:
        return np.zeros(count, np.int32)
    tree = hierarchy.linkage(squareform(np.asarray(distance, np.float64), checks=False), linkage)
    merges = count - num_groups if threshold is None else np.searchsorted(tree[:, 2], threshold)
    return _after(tree, int(np.clip(merges, 0, count - 1)))


def _after(tree: np.ndarray, merges: int) -> np.ndarray:
    """Labels after the first merges; SciPy's own cuts go by height, and ties leave them with fewer groups."""
    count = len(tree) + 1
    made = count + np.arange(merges)
    ends = tree[:merges, :2].astype(np.int64)
    edges = (np.ones(2 * merges), (ends.T.ravel(), np.tile(made, 2)))
    _, labels = connected_components(coo_matrix(edges, shape=(2 * count, 2 * count)), directed=False)
    return renumber(labels[:count])


def bipartition(
    similarity: Float[np.ndarray, "n n"], linkage: Literal["single", "complete"] = "single"
) -> tuple[Int[np.ndarray, "n"], float]:
    """Splits members in two.

    Args:
        similarity: symmetric.
        linkage: `single` solves (1), `complete` is the released code.

    Returns:
        Labels 0 and 1, int32, and alpha_cross^max, the largest similarity across; all 0 and 1.0 for fewer
        than two members, which no test of a gap lets pass.
    """
    labels = agglomerate(1 - similarity.astype(np.float64), linkage, num_groups=2)
    if len(labels) < 2:
        return labels, 1.0
    return labels, float(similarity[np.ix_(labels == 0, labels == 1)].max())
