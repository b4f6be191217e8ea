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

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fedjax_vp.federated.bundles import Bundle
from fedjax_vp.models.base import Params

DECAY = 0.95  # of the running averages over rounds


class Variance(NamedTuple):
    """Running averages, per bundle: its statistics, [3, ...]: signal, noise and sigma^2.

    Signal is the mean over groups of z^2, noise that of sigma^2 / n.
    """

    moments: Params
    weight: Float[Array, ""]  # of the averages, for their bias correction


class Moments(NamedTuple):
    """What one round says about a bundle of a level; all [group or 1, ...], broadcastable to its rows."""

    z: Array  # m + h delta
    mean: Array  # m
    weight: Array  # sum of w over a group's participants
    square_weight: Array  # sum of w^2
    residual: Array  # weighted residual sum of squares before this level
    halves: Array  # weighted mean of the squared half differences: a client's own variance
    centered: bool  # a coarser level owns the bundle and has taken the mean out


def init(bundles: dict[str, Bundle]) -> Variance:
    """Empty averages for the bundles of a level."""
    zero = {n: jnp.zeros((3, *bundle.stat_shape)) for n, bundle in bundles.items()}
    return Variance(zero, jnp.zeros(()))


def observe(bundle: Bundle, moments: Moments) -> Array:
    """Signal, noise and sigma^2 of one round, [3, ...] as in `Variance`."""
    active = moments.weight > 0
    weight = jnp.where(active, moments.weight, 1.0)
    per_client = jnp.where(active, moments.square_weight / weight**2, 0.0)  # 1 / n_g
    within = moments.residual - bundle.total(moments.weight * moments.mean**2)
    free = jnp.where(active, moments.weight - moments.square_weight / weight, 0.0)
    ones = active.astype(jnp.float32)
    totals = jax.vmap(bundle.total)(jnp.stack([moments.weight, free, ones, per_client]))  # over sums
    everything, freedom, count, shares = totals
    enough = freedom > 1e-3 * everything
    sigma2 = jnp.where(enough, jnp.maximum(within, 0.0) / jnp.where(enough, freedom, 1.0), moments.halves)
    size = jnp.maximum(count / jnp.maximum(jnp.sum(active, axis=0).max(), 1), 1.0)
    degrees = jnp.maximum(count - (size if moments.centered else 0.0), size)
    signal = bundle.total(jnp.where(active, moments.z**2, 0.0)) / degrees
    return jnp.concatenate([signal, sigma2 * shares / jnp.maximum(count, 1.0), sigma2])


def average(old: Variance, seen: dict[str, Array]) -> Variance:
    """Adds a round to the running averages."""
    moments = {n: DECAY * x + (1 - DECAY) * seen[n] for n, x in old.moments.items()}
    return Variance(moments, DECAY * old.weight + (1 - DECAY))


def factor(
    variance: Variance,
    name: str,
    weight: Array,
    square_weight: Array,
) -> Array:
    """s_g of (2) for a bundle; 1 where there is neither signal nor noise."""
    correction = jnp.maximum(variance.weight, 1e-12)
    signal, noise, sigma2 = jnp.split(variance.moments[name] / correction, 3)
    tau2 = jnp.maximum(signal - noise, 0.0)
    active = weight > 0
    noise = sigma2 * jnp.where(active, square_weight, 1.0)
    noise = noise / jnp.where(active, weight, 1.0) ** 2
    total = tau2 + noise
    return jnp.where(total > 0, tau2 / jnp.where(total > 0, total, 1.0), 1.0)
