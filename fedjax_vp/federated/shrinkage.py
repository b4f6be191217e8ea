"""Partial pooling: how much of a group's own deviation to believe (empirical Bayes, one-way ANOVA).

For the rows of a level, z_g = m_g + h delta_g is a group's estimate of (h times) its own optimum relative to
the levels above. Its spread over groups holds signal and noise:

    E z_g^2 = tau^2 + sigma^2 / n_g,         n_g = (sum w)^2 / sum w^2                             (1)
    s_g     = tau^2 / (tau^2 + sigma^2 / n_g)                                                      (2)

sigma^2 is the variance of one client's update within its group, from the weighted residual sum of squares;
where groups have a single client there is no such residual, and it comes from two halves of the client's own
steps. Both moments are estimated per parameter tensor (the output layer per output unit), pooled over the
level's groups and averaged over rounds; tau^2 is cut at 0.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from fedjax_vp.models.base import Params

DECAY = 0.95  # of the running averages over rounds


class Variance(NamedTuple):
    """Running averages, per leaf, with the leaf's rank and a leading axis of 1 (no group axis)."""

    signal: Params  # mean over groups of z^2
    noise: Params  # mean over groups of sigma^2 / n
    sigma2: Params
    weight: Float[Array, ""]  # of the averages, for their bias correction


class Moments(NamedTuple):
    """What one round says about a leaf of a level; broadcastable to its rows [group, ...]."""

    z: Array  # m + h delta
    weight: Array  # sum of w over a group's participants
    square_weight: Array  # sum of w^2
    residual: Array  # weighted residual sum of squares before this level, [1, ...]
    mean: Array  # m
    halves: (
        Array  # weighted mean of the squared half differences (a client's own sampling variance), [1, ...]
    )
    centered: bool  # a coarser level owns the leaf and has taken the mean out


def stat_axes(leaf: str, ndim: int) -> tuple[int, ...]:
    """Axes over which a leaf's variance is pooled: all, but the output units of the last layer."""
    return tuple(range(ndim - 1)) if leaf.startswith("head/") and ndim else tuple(range(ndim))


def stat_shape(leaf: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of a leaf's variances: 1 on the pooled axes."""
    pooled = stat_axes(leaf, len(shape))
    return tuple(1 if axis in pooled else size for axis, size in enumerate(shape))


def init(params: Params, names: tuple[str, ...]) -> Variance:
    """Empty averages for the leaves of a level."""
    zero = {n: jnp.zeros((1, *stat_shape(n, params[n].shape))) for n in names}
    return Variance(zero, dict(zero), dict(zero), jnp.zeros(()))


def observe(leaf: str, moments: Moments) -> tuple[Array, Array, Array]:
    """Signal, noise and sigma^2 of one round, each [1, ...] as in `Variance`."""
    active = moments.weight > 0
    weight = jnp.where(active, moments.weight, 1.0)
    per_client = jnp.where(active, moments.square_weight / weight**2, 0.0)  # 1 / n_g

    def total(x: Array) -> Array:
        return total_of(leaf, x, moments.z.shape)

    within = moments.residual - total(moments.weight * moments.mean**2)
    freedom = total(jnp.where(active, moments.weight - moments.square_weight / weight, 0.0))
    enough = freedom > 1e-3 * total(moments.weight)
    sigma2 = jnp.where(enough, jnp.maximum(within, 0.0) / jnp.where(enough, freedom, 1.0), moments.halves)
    count = total(active.astype(jnp.float32))
    size = jnp.maximum(count / jnp.maximum(jnp.sum(active, axis=0).max(), 1), 1.0)
    degrees = jnp.maximum(count - (size if moments.centered else 0.0), size)
    signal = total(jnp.where(active, moments.z**2, 0.0)) / degrees
    noise = total(sigma2 * per_client) / jnp.maximum(count, 1.0)
    return signal, noise, sigma2


def total_of(leaf: str, x: Array, shape: tuple[int, ...]) -> Array:
    """Sums over groups and pooled axes of something broadcastable to rows of a shape; so is what it returns.

    What is the same along an axis is counted, so that leaves of equal weights have their sums in common.
    """
    axes = tuple(1 + a for a in stat_axes(leaf, len(shape) - 1))
    repeated = math.prod(shape[a] for a in axes if x.shape[a] == 1)
    return repeated * jnp.sum(x, axis=(0, *axes), keepdims=True)


def average(old: Variance, seen: dict[str, tuple[Array, Array, Array]]) -> Variance:
    """Adds a round to the running averages; a round in which nobody took part changes nothing."""
    if not seen:
        return old
    signal, noise, sigma2 = (
        {n: DECAY * field[n] + (1 - DECAY) * seen[n][i] for n in field}
        for i, field in enumerate((old.signal, old.noise, old.sigma2))
    )
    return Variance(signal, noise, sigma2, DECAY * old.weight + (1 - DECAY))


def factor(variance: Variance, leaf: str, weight: Array, square_weight: Array) -> Array:
    """s_g of (2), broadcastable to the rows; 1 where there is neither signal nor noise."""
    correction = jnp.maximum(variance.weight, 1e-12)
    tau2 = jnp.maximum(variance.signal[leaf] - variance.noise[leaf], 0.0) / correction
    active = weight > 0
    noise = variance.sigma2[leaf] / correction * jnp.where(active, square_weight, 1.0)
    noise = noise / jnp.where(active, weight, 1.0) ** 2
    total = tau2 + noise
    return jnp.where(total > 0, tau2 / jnp.where(total > 0, total, 1.0), 1.0)
