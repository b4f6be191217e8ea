"""Prediction-level mixing: which prefix of the hierarchy to trust at which horizon.

    p(k) = normalize( sum_l pi[l, k] p_l(k) ),        pi[:, k] on the simplex

p_l is the prediction of theta^(<=l). The weights minimize the mean great-circle error of validation windows,
which come from training sessions; `best_prefix` is the hard case. A sum of parameters cannot do this below
the last layer.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from fedjax_vp import geometry

STEPS, LEARNING_RATE = 100, 0.3


def mix(
    weights: Float[Array, "level horizon"], predicted: Float[Array, "level window horizon 3"]
) -> Float[Array, "window horizon 3"]:
    """Normalized mixture of the prefixes' predictions."""
    total = jnp.sum(weights[:, None, :, None] * predicted, axis=0)
    return total / jnp.maximum(jnp.linalg.norm(total, axis=-1, keepdims=True), 1e-9)


def last_level(num_levels: int, horizon: int) -> Float[Array, "level horizon"]:
    """Weights that predict with the whole hierarchy."""
    return jnp.zeros((num_levels, horizon)).at[-1].set(1.0)


def fit(
    predicted: Float[Array, "level window horizon 3"],
    target: Float[Array, "window horizon 3"],
    weight: Float[Array, "window"],
    hard: bool,
) -> Float[Array, "level horizon"]:
    """Learns the weights on validation windows.

    Args:
        predicted: unit vectors of each prefix.
        target: true unit vectors.
        weight: of each window, 0 for padding.
        hard: best single prefix at each horizon instead of a mixture.
    """
    share = weight / jnp.maximum(jnp.sum(weight), 1.0)

    def error(prediction: Float[Array, "window horizon 3"]) -> Float[Array, "horizon"]:
        return jnp.sum(share[:, None] * geometry.great_circle(prediction, target), axis=0)

    single = jax.lax.map(error, predicted)
    best = jax.nn.one_hot(jnp.argmin(single, axis=0), predicted.shape[0], axis=0)
    if hard:
        return best
    optimizer = optax.adam(LEARNING_RATE)

    def step(carry: tuple, _: None) -> tuple[tuple, None]:
        logits, moments = carry
        gradient = jax.grad(lambda x: jnp.sum(error(mix(jax.nn.softmax(x, axis=0), predicted))))(logits)
        update, moments = optimizer.update(gradient, moments)
        return (optax.apply_updates(logits, update), moments), None

    start = best  # logits that lean to the best prefix
    (logits, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), None, length=STEPS)
    mixture = jax.nn.softmax(logits, axis=0)
    better = error(mix(mixture, predicted)) < jnp.min(single, axis=0)
    return jnp.where(better[None, :], mixture, best)
