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
    rng = np.random.default_rng(seed)
    best = min(
        (_lloyd(rows, weight, _start(rows, weight, num_groups, rng), spherical) for _ in range(restarts)),
        key=lambda run: run[1],
    )
    labels = renumber(best[0])
    used = np.unique(labels, return_index=True)[1]
    centers = _centers(rows, weight, labels, len(used), spherical)
    return Fit(labels, centers, best[1])


def _start(rows: np.ndarray, weight: np.ndarray, num_groups: int, rng: np.random.Generator) -> np.ndarray:
    """k-means++: each next center is a row drawn by its squared distance to the nearest so far."""
    square = _squares(rows)
    centers = rows[rng.choice(len(rows), 1, p=weight / weight.sum())]
    while len(centers) < num_groups:
        chance = weight * _square_distances(rows, square, centers).min(axis=1)
        if chance.sum() <= 0:
            break  # every row is a center
        centers = np.concatenate([centers, rows[rng.choice(len(rows), 1, p=chance / chance.sum())]])
    return centers


def _lloyd(
    rows: np.ndarray, weight: np.ndarray, centers: np.ndarray, spherical: bool, iterations: int = 100
) -> tuple[np.ndarray, float]:
    """Labels and inertia once they stand still; an empty group restarts from the worst-served row."""
    labels, square = np.full(len(rows), -1), _squares(rows)
    for _ in range(iterations):
        apart = _square_distances(rows, square, centers)
        new = apart.argmin(axis=1)
        own = weight * apart[np.arange(len(rows)), new]
        for empty in np.setdiff1d(np.arange(len(centers)), new):
            worst = own.argmax()
            if own[worst] <= 0:
                break
            new[worst], own[worst] = empty, 0.0
        if np.array_equal(new, labels):
            break
        labels = new
        centers = _centers(rows, weight, labels, len(centers), spherical)
    apart = _square_distances(rows, square, centers)[np.arange(len(rows)), labels]
    return labels, float((weight * apart).sum())


def _centers(
    rows: np.ndarray, weight: np.ndarray, labels: np.ndarray, num_groups: int, spherical: bool
) -> np.ndarray:
    share = np.zeros((num_groups, len(rows)))
    share[labels, np.arange(len(rows))] = weight
    total = share.sum(axis=1, keepdims=True)
    mean = share @ rows / np.where(total > 0, total, 1)
    return _unit(mean) if spherical else mean


def _unit(rows: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
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
