"""One-shot agglomerative clustering of updates (FL+HC).

Briggs, Fan, Andras, "Federated learning with hierarchical clustering of local updates to improve training on
non-IID data", IJCNN 2020: after some rounds of FedAvg every member sends one update from the common model;
agglomerative clustering of these decides the groups, which then train apart. In the paper the Manhattan
distance worked best, with a threshold rather than a number of groups.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial.distance import pdist, squareform

from fedjax_vp.errors import UserError
from fedjax_vp.federated.grouping.linkage import Linkage, agglomerate
from fedjax_vp.federated.grouping.similarity import cosine

Metric = Literal["l1", "l2", "cosine"]


def fit(
    updates: Float[np.ndarray, "n d"],
    metric: Metric = "l1",
    linkage: Linkage = "average",
    threshold: float | None = None,
    num_groups: int = 1,
) -> Int[np.ndarray, "n"]:
    """Groups members by their updates.

    Args:
        updates: from one common model.
        metric: distance of two updates.
        linkage: distance of two groups; `ward` wants `l2`.
        threshold: groups are merged while nearer than this; None: until `num_groups` are left.
        num_groups: how many, without a threshold.
    """
    if linkage == "ward" and metric != "l2":
        raise UserError(f"metric is {metric}: linkage ward wants l2")
    return agglomerate(distances(updates, metric), linkage, threshold, num_groups)


def distances(updates: Float[np.ndarray, "n d"], metric: Metric) -> Float[np.ndarray, "n n"]:
    """Pairwise distances: sums of absolute differences, Euclidean, or 1 - cosine."""
    if metric == "cosine":
        return 1 - cosine(updates).astype(np.float64)
    if len(updates) < 2:
        return np.zeros((len(updates), len(updates)))
    return squareform(pdist(updates, "cityblock" if metric == "l1" else "euclidean"))
