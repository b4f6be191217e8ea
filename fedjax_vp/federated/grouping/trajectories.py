"""Oracles: groups of viewers of one video from their trajectories themselves.

These see the data that federated learning keeps on the headset. They say how much a grouping could gain, and
are no method to deploy.

* Spectral clustering (Petrangeli, Simon, Swaminathan, "Trajectory-Based Viewport Prediction for 360-Degree
  Virtual Reality Videos", AIVR 2018) on the affinity exp(-(d_ij / scale)^2 / 2) of the mean great-circle
  distance of two viewers at the same video time.
* Cliques (Rossi, De Simone, Frossard, Toni, "Spherical Clustering of Users Navigating 360 Content", ICASSP
  2019): viewers are joined when they are nearer than pi / 10 for at least a share of the chunk (1.8 of 3 s);
  the largest clique is a group and is taken out, until nobody is left. All pairs in a group are joined.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float, Int

from fedjax_vp.federated.grouping.labels import renumber


def distances(
    direction: Float[np.ndarray, "viewer time 3"], valid: Bool[np.ndarray, "viewer time"]
) -> Float[np.ndarray, "viewer viewer time"]:
    """Great-circle distance of each two viewers at each time, radians; NaN where one is not known."""
    chord = np.linalg.norm(direction[:, None] - direction[None, :], axis=-1)
    angle = 2 * np.arcsin(np.minimum(chord / 2, 1))
    return np.where(valid[:, None] & valid[None, :], angle, np.nan)


def mean_distance(apart: Float[np.ndarray, "viewer viewer time"]) -> Float[np.ndarray, "viewer viewer"]:
    """Mean over the times both are known; pi where they never are."""
    known = np.isfinite(apart)
    count = known.sum(axis=2)
    return np.where(count > 0, np.where(known, apart, 0).sum(axis=2) / np.maximum(count, 1), math.pi)


def spectral(
    direction: Float[np.ndarray, "viewer time 3"],
    valid: Bool[np.ndarray, "viewer time"],
    num_groups: int,
    scale: float | None = None,
) -> Int[np.ndarray, "viewer"]:
    """Spectral clustering of viewers.

    Args:
        direction: unit vectors at common video times.
        valid: where they are known.
        num_groups: how many groups; one a viewer where there are no more viewers.
        scale: of the affinity, radians; None: the median distance of different viewers.
    """
    count = len(direction)
    if count <= num_groups or num_groups == 1:
        return np.arange(count, dtype=np.int32) if count <= num_groups else np.zeros(count, np.int32)
    from sklearn.cluster import SpectralClustering

    apart = mean_distance(distances(direction, valid))
    scale = scale or float(np.median(apart[~np.eye(count, dtype=bool)])) or 1.0
    affinity = np.exp(-((apart / scale) ** 2) / 2)
    model = SpectralClustering(num_groups, affinity="precomputed", assign_labels="cluster_qr", random_state=0)
    return renumber(model.fit_predict(affinity))


def cliques(
    direction: Float[np.ndarray, "viewer time 3"],
    valid: Bool[np.ndarray, "viewer time"],
    radius: float = math.pi / 10,
    share: float = 0.6,
) -> Int[np.ndarray, "viewer"]:
    """Clique-based clustering of viewers over a chunk of time.

    Args:
        direction: unit vectors at the times of the chunk.
        valid: where they are known; unknown times are no time together.
        radius: how near two viewers are who see much the same, radians.
        share: of the chunk's times that they must be so near.
    """
    count, times = valid.shape
    near = (distances(direction, valid) < radius).sum(axis=2)
    joined = (near >= share * times) & ~np.eye(count, dtype=bool)
    labels = np.full(count, -1)
    while (left := np.flatnonzero(labels < 0)).size:
        clique = largest_clique(joined[np.ix_(left, left)])
        labels[left[clique]] = labels.max() + 1
    return renumber(labels)


def largest_clique(joined: Bool[np.ndarray, "n n"]) -> list[int]:
    """Members of a largest clique; the first found where several are.

    Branch and bound over Bron and Kerbosch's search: a set that can be colored with c colors holds no clique
    of more than c (Tomita, Seki 2003). Sets are the bits of an integer.
    """
    neighbors = [int("".join("1" if x else "0" for x in row[::-1]), 2) for row in joined]
    best: list[int] = []

    def colored(candidates: int) -> list[tuple[int, int]]:
        """Vertices with the number of colors used up to each, so that bounds ascend."""
        order, color = [], 0
        while candidates:
            color, free = color + 1, candidates
            while free:
                vertex = (free & -free).bit_length() - 1
                candidates &= ~(1 << vertex)
                free &= ~(1 << vertex) & ~neighbors[vertex]
                order.append((vertex, color))
        return order

    def grow(clique: list[int], candidates: int) -> None:
        nonlocal best
        if len(clique) > len(best):
            best = clique
        for vertex, bound in reversed(colored(candidates)):
            if len(clique) + bound <= len(best):
                return
            grow([*clique, vertex], candidates & neighbors[vertex])
            candidates &= ~(1 << vertex)

    grow([], (1 << len(joined)) - 1)
    return sorted(best)
