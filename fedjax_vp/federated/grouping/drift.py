"""FedDrift: members whose loss jumps open a model of their own; models that serve each other's members merge.

Jothimurugesan, Hsieh, Wang, Joshi, Gibbons, "Federated Learning under Distributed Concept Drift", AISTATS
2023, in losses instead of accuracies. L_ij is the loss of model j on the members of model i:

    isolate   min_j loss_j(now) > min_j loss_j(before) + delta                                        (1)
    merge     D(i, j) = max(L_ij - L_ii, L_ji - L_jj, 0), complete linkage while D < delta'           (2)
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from fedjax_vp.federated.grouping.linkage import agglomerate


def isolates(
    before: Float[Array, "n model"], now: Float[Array, "n model"], delta: Float[ArrayLike, ""]
) -> Bool[Array, "n"]:
    """(1): members that no model serves as well as the best did; infinite losses mark models not in use."""
    return jnp.min(now, axis=1) > jnp.min(before, axis=1) + delta


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
