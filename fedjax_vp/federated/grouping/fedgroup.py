"""FedGroup and FlexCFL: a cold start from the members' first updates, then groups that stay in touch.

Duan et al., "FedGroup: Efficient Federated Learning via Decomposed Similarity-Based Clustering", ISPA 2021;
"Flexible Clustered Federated Learning for Client-Level Data Distribution Shift", IEEE TPDS 33(11), 2022.
D [n, d] are the updates of members that train from the initial model, S their cosines, V [d, k] the first k
left singular vectors of D^T, each times its singular value:

    EDC   E = cos(D, V^T),  d(i, j) = |E_i - E_j|, k-means on the rows of E                          (1)
    MADC  d(i, j) = mean_{k != i, j} |S_ik - S_jk|, complete linkage                                  (2)
    newcomer    argmin_g (1 - cos(D_i, mean update of g)) / 2                                         (3)
    every round w_g <- (w_g + eta sum_{h != g} w_h / |w_h|) / (1 + eta sum_{h != g} 1 / |w_h|)        (4)
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from fedjax_vp.federated.grouping import kmeans
from fedjax_vp.federated.grouping.linkage import agglomerate
from fedjax_vp.federated.grouping.similarity import cosine, cosine_to
from fedjax_vp.models.base import Params


class ColdStart(NamedTuple):
    """Groups of the members that trained first."""

    labels: np.ndarray  # int32 [n]
    centers: np.ndarray  # mean first update of each group, [group, d]


def cold_start(
    updates: Float[np.ndarray, "n d"], num_groups: int, seed: int, measure: Literal["edc", "madc"] = "edc"
) -> ColdStart:
    """Groups members by (1) or (2)."""
    if measure == "edc":
        labels = kmeans.fit(edc(updates, num_groups), num_groups, seed).labels
    else:
        labels = agglomerate(madc(cosine(updates)), "complete", num_groups=num_groups)
    groups = labels.max(initial=-1) + 1
    means = [updates[labels == group].mean(axis=0) for group in range(groups)]
    return ColdStart(labels, np.stack(means) if means else updates[:0])


def edc(updates: Float[np.ndarray, "n d"], rank: int) -> Float[np.ndarray, "n rank"]:
    """E of (1), columns up to their sign; zero columns where there are fewer directions.

    With D = W Sigma U^T the cosine of D_i and U_j is W_ij Sigma_j / |D_i|: the n x n eigenproblem of D D^T is
    enough, and exact.
    """
    updates = np.asarray(updates, np.float64)
    square, vectors = np.linalg.eigh(updates @ updates.T)
    order = np.argsort(square)[::-1][:rank]
    values = np.sqrt(np.maximum(square[order], 0))
    norm = np.linalg.norm(updates, axis=1, keepdims=True)
    found = vectors[:, order] * values / np.where(norm > 0, norm, 1)
    return np.pad(found, ((0, 0), (0, rank - found.shape[1])))


def madc(similarity: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """Distances of (2); 0 where there is no third member."""
    count = len(similarity)
    distance = np.zeros((count, count))
    for i, row in enumerate(np.asarray(similarity, np.float64)):
        apart = np.abs(similarity - row[None, :])
        # the terms k = i and k = j are left out
        total = apart.sum(axis=1) - apart[:, i] - np.diagonal(apart)
        distance[i] = total / max(count - 2, 1)
    np.fill_diagonal(distance, 0)
    return np.maximum((distance + distance.T) / 2, 0)


def newcomers(
    updates: Float[np.ndarray, "n d"], centers: Float[np.ndarray, "group d"]
) -> Int[np.ndarray, "n"]:
    """Groups by (3), from first updates; members that migrate are placed the same way."""
    return cosine_to(updates, centers).argmax(axis=1).astype(np.int32)


def inter_group(rows: Params, active: Bool[Array, "group"], rate: Float[ArrayLike, ""]) -> Params:
    """(4) on the rows of a level: each group moves a little towards the directions of the others.

    Args:
        rows: leaves [group, ...]; norms are of whole models.
        active: groups in use; the others neither move nor pull.
        rate: eta.
    """
    square = [jnp.sum(x.reshape(x.shape[0], -1) ** 2, axis=1) for x in rows.values()]
    norm = jnp.sqrt(sum(square[1:], square[0]))
    pull = jnp.where(active & (norm > 0), 1 / jnp.where(norm > 0, norm, 1.0), 0.0)
    others = (1 - jnp.eye(pull.shape[0])) * pull[None, :] * active[:, None]
    share = rate / (1 + rate * others.sum(axis=1, keepdims=True)) * others
    keep = 1 / (1 + rate * others.sum(axis=1))

    def mix(x: Array) -> Array:
        mixed = jnp.tensordot(share, x, 1, precision=jax.lax.Precision.HIGHEST)
        return jnp.asarray(keep.reshape((-1,) + (1,) * (x.ndim - 1)) * x + mixed)

    return {name: mix(x) for name, x in rows.items()}
