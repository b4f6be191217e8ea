"""FedDrift: members whose loss jumps open a model of their own; models that serve each other's members merge.

Jothimurugesan, Hsieh, Wang, Joshi, Gibbons, "Federated Learning under Distributed Concept Drift", AISTATS
2023, in losses instead of accuracies. L_ij is the loss of model j on the members of model i:

    isolate   min_j loss_j(now) > min_j loss_j(before) + delta                                        (1)
    merge     D(i, j) = max(L_ij - L_ii, L_ji - L_jj, 0), complete linkage while D < delta'           (2)
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from fedjax_vp.federated.grouping.labels import same_group
from fedjax_vp.federated.grouping.linkage import agglomerate


def isolates(
    before: Float[np.ndarray, "n model"], now: Float[np.ndarray, "n model"], delta: float
) -> Bool[np.ndarray, "n"]:
    """(1): members that no model serves as well as the best did; infinite losses mark models not in use."""
    return now.min(axis=1, initial=np.inf) > before.min(axis=1, initial=np.inf) + delta


def distances(losses: Float[np.ndarray, "k k"]) -> Float[np.ndarray, "k k"]:
    """D of (2)."""
    worse = losses - np.diagonal(losses)[:, None]
    return np.maximum(np.maximum(worse, worse.T), 0)


def merge(losses: Float[np.ndarray, "k k"], threshold: float) -> Int[np.ndarray, "k"]:
    """(2): which models become one.

    Args:
        losses: of model j (column) on the members of model i (row).
        threshold: delta', in units of the loss.
    """
    return agglomerate(distances(losses), "complete", threshold)


def sources(
    labels: Int[np.ndarray, "k"], weights: Float[np.ndarray, "k"], capacity: int
) -> Float[np.ndarray, "capacity k"]:
    """What `operations.regroup` wants: the merged model of each label is its models' weighted mean.

    Rows beyond the labels are zero: they are free again. Where no model has weight, all count equally.
    """
    same = same_group(labels).astype(np.float64)
    weights = np.where(same @ weights > 0, weights, 1.0)
    share = same * weights[None, :] / (same @ weights)[:, None]
    out = np.zeros((capacity, len(labels)))
    out[labels] = share
    return out
