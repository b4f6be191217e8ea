"""Cosine similarity of updates: what clustered federated learning sees of its clients.

    S_ij = <D_i, D_j> / (|D_i| |D_j| + 1e-12)                                                      (1)

Sattler, Mueller, Samek, "Clustered Federated Learning: Model-Agnostic Distributed Multitask Optimization
under Privacy Constraints", IEEE TNNLS 32(8), 2021; (1) with its constant is that of the released code.
Meant for up to 8192 members (256 MB); beyond that, compare sketches with a few centers (`sketch.py`,
`kmeans.py`).
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fedjax_vp.federated.grouping.labels import same_group

_BLOCKS = 8  # of rows: 9/16 of the whole product
COLUMNS = 4096  # at a time
_MANY = 2048  # members, on a CPU


class Separation(NamedTuple):
    """Similarity of different members inside and across groups; NaN where there is no such pair."""

    within: float  # means
    between: float
    least_within: float  # alpha_intra^min
    most_between: float  # alpha_cross^max


def cosine(updates: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n n"]:
    """(1) in float32, clipped to [-1, 1]; 0 with a member whose update is zero."""
    updates = np.ascontiguousarray(updates, np.float32)
    out = _products(updates)
    norm = np.sqrt(out.diagonal())
    out /= norm[:, None] * norm[None, :] + np.float32(1e-12)
    return np.clip(out, -1, 1, out=out)


def _products(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n n"]:
    """All inner products.

    Few members are NumPy's, which hands a product with one's own transpose to BLAS's syrk. Where there are
    many, or an accelerator, blocks of rows from the diagonal on are added up over slices of columns, and the
    host mirrors them: on two AVX-512 cores 70 % of a large product's rate for 8192 members, syrk 59 %.
    """
    if jax.default_backend() == "cpu" and len(x) < _MANY:
        return x @ x.T
    step = -(-len(x) // _BLOCKS) or 1
    begins = range(0, len(x), step)
    parts = [jnp.zeros((min(step, len(x) - begin), len(x) - begin)) for begin in begins]
    for at in range(0, x.shape[1], COLUMNS):
        parts = _add(parts, np.ascontiguousarray(x[:, at : at + COLUMNS]), step)
    out = np.empty((len(x), len(x)), np.float32)
    for begin, part in zip(begins, parts, strict=True):
        block = np.asarray(part)
        out[begin : begin + step, begin:] = block
        out[begin + step :, begin : begin + step] = block[:, step:].T
    return out


@partial(jax.jit, donate_argnums=0, static_argnums=2)
def _add(parts: list[Array], x: Float[Array, "n d"], step: int) -> list[Array]:
    """Blocks of `step` rows, and the products of their members with those from the block on."""
    exact = jax.lax.Precision.HIGHEST
    begins = range(0, len(x), step)
    return [
        part + jnp.matmul(x[begin : begin + step], x[begin:].T, precision=exact)
        for part, begin in zip(parts, begins, strict=True)
    ]


def cosine_to(
    updates: Float[np.ndarray, "n d"], others: Float[np.ndarray, "m d"]
) -> Float[np.ndarray, "n m"]:
    """(1) between members and others, such as centers."""
    updates, others = np.asarray(updates, np.float32), np.asarray(others, np.float32)
    norms = np.linalg.norm(updates, axis=1)[:, None] * np.linalg.norm(others, axis=1)[None, :]
    return np.clip(updates @ others.T / (norms + np.float32(1e-12)), -1, 1)


def within_between(similarity: Float[np.ndarray, "n n"], labels: Int[np.ndarray, "n"]) -> Separation:
    """The picture that splitting by similarity rests on: how far apart the groups' updates point."""
    pair = ~np.eye(len(labels), dtype=bool)
    same = same_group(labels)
    inside, across = similarity[pair & same], similarity[pair & ~same]
    return Separation(
        float(inside.mean(dtype=np.float64)) if inside.size else math.nan,
        float(across.mean(dtype=np.float64)) if across.size else math.nan,
        float(inside.min()) if inside.size else math.nan,
        float(across.max()) if across.size else math.nan,
    )


def silhouette(similarity: Float[np.ndarray, "n n"], labels: Int[np.ndarray, "n"]) -> float:
    """Mean silhouette (Rousseeuw 1987) under the distance 1 - S; NaN unless there are 2 to n - 1 groups."""
    if not 2 <= len(np.unique(labels)) < len(labels):
        return math.nan
    from sklearn.metrics import silhouette_score

    distance = 1 - np.asarray(similarity, np.float64)
    np.fill_diagonal(distance, 0)
    return float(silhouette_score(distance, labels, metric="precomputed"))
