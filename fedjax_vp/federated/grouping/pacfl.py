"""PACFL: groups by the angles between the subspaces that members' data span, before any training.

Vahidian et al., "Efficient Distribution Similarity Identification in Clustered Federated Learning via
Principal Angles Between Client Data Subspaces", AAAI 2023. Member i sends U_i, the first p left singular
vectors of its data matrix (features x samples; here windows of a trajectory, 3 numbers a step), once. With
the principal angles 0 <= phi_1 <= ... <= phi_p of two subspaces, cos phi = singular values of U_i^T U_j,

    A_ij = phi_1   or   phi_1 + ... + phi_p   (degrees),                                              (1)

and agglomerative clustering of A up to a threshold beta gives the groups. (The released code takes the arc
cosines of the entries of U_i^T U_j, which depend on the basis chosen.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from fedjax_vp.federated.grouping.linkage import Linkage, agglomerate

Angle = Literal["smallest", "sum"]


def subspaces(windows: Sequence[Float[np.ndarray, "_ d"]], rank: int) -> Float[np.ndarray, "n d rank"]:
    """Bases U of the members' windows; zero columns where a member's windows span fewer directions.

    Args:
        windows: of each member, [window, d], any number of them.
        rank: p.
    """
    if not len(windows):
        return np.zeros((0, 0, rank))
    return np.stack([_basis(np.asarray(x, np.float64), rank) for x in windows])


def _basis(windows: np.ndarray, rank: int) -> np.ndarray:
    """From the d x d second moments: d is a few dozen, windows may be many."""
    square, vectors = np.linalg.eigh(windows.T @ windows)
    order = np.argsort(square)[::-1][:rank]
    real = square[order] > square.max(initial=0) * np.finfo(np.float64).eps * len(square)
    basis = vectors[:, order] * real
    return np.pad(basis, ((0, 0), (0, rank - basis.shape[1])))


def angles(
    a: Float[np.ndarray, "n d rank"], b: Float[np.ndarray, "m d rank"], angle: Angle = "smallest"
) -> Float[np.ndarray, "n m"]:
    """A of (1) between two sets of bases, degrees; a missing direction is at 90 degrees to all."""
    if not (len(a) and len(b)):
        return np.zeros((len(a), len(b)))
    cosines = np.linalg.svd(np.einsum("idp,jdq->ijpq", a, b), compute_uv=False)
    phi = np.degrees(np.arccos(np.clip(cosines, 0, 1)))  # ascending, as singular values descend
    return phi[..., 0] if angle == "smallest" else phi.sum(axis=-1)


def fit(
    bases: Float[np.ndarray, "n d rank"],
    threshold: float | None = None,
    num_groups: int = 1,
    angle: Angle = "smallest",
    linkage: Linkage = "average",
) -> Int[np.ndarray, "n"]:
    """Groups members until they are `threshold` (beta) degrees apart, or until `num_groups` are left."""
    return agglomerate(angles(bases, bases, angle), linkage, threshold, num_groups)


def newcomers(
    bases: Float[np.ndarray, "m d rank"],
    members: Float[np.ndarray, "n d rank"],
    labels: Int[np.ndarray, "n"],
    threshold: float = np.inf,
    angle: Angle = "smallest",
) -> Int[np.ndarray, "m"]:
    """The group of the least mean angle; -1 where that is not below the threshold: a group of its own."""
    groups = labels.max(initial=-1) + 1
    if not groups or not len(bases):
        return np.full(len(bases), -1, np.int32)
    apart = angles(bases, members, angle)
    mean = np.stack([apart[:, labels == group].mean(axis=1) for group in range(groups)], axis=1)
    return np.where(mean.min(axis=1) < threshold, mean.argmin(axis=1), -1).astype(np.int32)
