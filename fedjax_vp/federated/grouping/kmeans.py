"""k-means on rows (updates, sketches, losses): Euclidean, or spherical by angle.

Lloyd's iteration from k-means++ starts (Arthur, Vassilvitskii 2007); spherical k-means after Dhillon, Modha
2001: rows and centers have unit length, and the nearest center is the one of largest cosine. For unit vectors
|x - c|^2 = 2 - 2 cos, so one loop serves both.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fedjax_vp.federated.grouping.labels import renumber


class Fit(NamedTuple):
    """Groups that were found; there are fewer than asked for where there are fewer distinct rows."""

    labels: np.ndarray  # int32 [n]
    centers: np.ndarray  # float64 [group, d], unit length if spherical
    inertia: float  # weighted sum of squared distances to the own center


def fit(
    rows: Float[np.ndarray, "n d"],
    num_groups: int,
    seed: int,
    weights: Float[np.ndarray, "n"] | None = None,
    spherical: bool = False,
    restarts: int = 10,
) -> Fit:
    """Best of several starts.

    Args:
        rows: what is grouped.
        num_groups: k.
        seed: of the starts.
        weights: of the rows in centers and inertia, above 0; None: equal.
        spherical: group by angle.
        restarts: starts to choose from.
    """
    rows = np.asarray(rows, np.float64)
    if not len(rows):
        return Fit(np.zeros(0, np.int32), np.zeros((0, rows.shape[1])), 0.0)
    rows = _unit(rows) if spherical else rows
    weight = np.ones(len(rows)) if weights is None else np.asarray(weights, np.float64)
    starts = _starts(rows, weight, (restarts, num_groups), np.random.default_rng(seed))
    every, inertia = _lloyd(rows, weight, starts, spherical)
    best = int(inertia.argmin())
    labels = renumber(every[best])
    used = np.unique(labels, return_index=True)[1]
    centers = _centers(rows, weight, labels[None], len(used), spherical)[0]
    return Fit(labels, centers, float(inertia[best]))


def _starts(
    rows: np.ndarray, weight: np.ndarray, size: tuple[int, int], rng: np.random.Generator
) -> np.ndarray:
    """k-means++, `size` (starts, groups): each next center is drawn by the squared distance to the nearest.

    Where every row is a center before there are enough, the last ones are repeated.
    """
    starts, num_groups = size
    square = _squares(rows)
    picked = [rng.choice(len(rows), starts, p=weight / weight.sum())]
    nearest = np.full((len(rows), starts), np.inf)
    while len(picked) < num_groups:
        nearest = np.minimum(nearest, _square_distances(rows, square, rows[picked[-1]]))
        chance = np.cumsum(weight[:, None] * nearest, axis=0)
        drawn = rng.random(starts) * chance[-1]
        next_ = np.minimum((chance <= drawn).sum(axis=0), len(rows) - 1)
        picked.append(np.where(chance[-1] > 0, next_, picked[-1]))
    return rows[np.stack(picked, axis=1)]


def _lloyd(
    rows: np.ndarray, weight: np.ndarray, centers: np.ndarray, spherical: bool, iterations: int = 100
) -> tuple[np.ndarray, np.ndarray]:
    """Labels [start, n] and inertia [start] once all stand still, from centers [start, group, d].

    All starts meet the rows in one product. An empty group begins again at the worst-served row.
    """
    starts, groups, _ = centers.shape
    centers, labels, square = centers.copy(), np.full((starts, len(rows)), -1), _squares(rows)
    moving = np.arange(starts)
    for _ in range(iterations):
        apart = _apart(rows, square, centers[moving])
        new = apart.argmin(axis=2)
        own = weight * np.take_along_axis(apart, new[..., None], axis=2)[..., 0]
        for one, served in zip(new, own, strict=True):
            for empty in np.flatnonzero(np.bincount(one, minlength=groups) == 0):
                worst = served.argmax()
                if served[worst] <= 0:
                    break
                one[worst], served[worst] = empty, 0.0
        moved = (new != labels[moving]).any(axis=1)
        labels[moving] = new
        moving = moving[moved]
        if not len(moving):
            break
        centers[moving] = _centers(rows, weight, labels[moving], groups, spherical)
    own = np.take_along_axis(_apart(rows, square, centers), labels[..., None], axis=2)[..., 0]
    return labels, own @ weight


def _apart(rows: np.ndarray, square: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Squared distances [start, n, group] to centers [start, group, d]."""
    found = _square_distances(rows, square, centers.reshape(-1, centers.shape[2]))
    return found.reshape(len(rows), *centers.shape[:2]).swapaxes(0, 1)


def _centers(
    rows: np.ndarray, weight: np.ndarray, labels: np.ndarray, num_groups: int, spherical: bool
) -> np.ndarray:
    """Means of the groups, [start, group, d], of labels [start, n]."""
    share = (labels[:, None] == np.arange(num_groups)[:, None]) * weight  # [start, group, n]
    total = share.sum(axis=2, keepdims=True)
    mean = (share.reshape(-1, len(rows)) @ rows).reshape(*share.shape[:2], -1)
    mean = mean / np.where(total > 0, total, 1)
    return _unit(mean) if spherical else mean


def _unit(rows: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(norm > 0, norm, 1)


def _squares(rows: np.ndarray) -> np.ndarray:
    return np.einsum("nd,nd->n", rows, rows)


def _square_distances(rows: np.ndarray, square: np.ndarray, centers: np.ndarray) -> np.ndarray:
    apart = square[:, None] - rows @ (2 * centers.T) + _squares(centers)[None, :]
    scale = np.finfo(np.float64).eps * 4 * square.max(initial=0)
    return np.where(apart > scale, apart, 0.0)


def assign(rows: Float[Array, "n d"], centers: Float[Array, "group d"]) -> Int[Array, "n"]:
    """Nearest center of each row, in one matrix product."""
    half = jnp.sum(centers**2, axis=1)[None, :] / 2
    score = jnp.matmul(rows, centers.T, precision=jax.lax.Precision.HIGHEST) - half
    return jnp.argmax(score, axis=1).astype(jnp.int32)
