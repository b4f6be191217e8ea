"""Linear sketches of updates: random signs, then sums over strided blocks; O(d) a client, no scatters."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def sketch(delta: dict[str, Array], key: Array, size: int) -> Float[Array, "unit size"]:
    """Sketches updates of units; inner products are unbiased over keys.

    Args:
        delta: leaves [unit, ...].
        key: of the signs, the same for all units.
        size: numbers in a sketch; 0: the update itself, leaves in order of their names.
    """
    flat = [x.reshape(x.shape[0], -1) for _, x in sorted(delta.items())]
    if not size:
        return jnp.concatenate(flat, axis=1)
    total = jnp.zeros((flat[0].shape[0], size))
    for index, x in enumerate(flat):
        signs = jax.random.rademacher(jax.random.fold_in(key, index), (x.shape[1],), jnp.float32)
        folds = -(-x.shape[1] // size)
        padded = jnp.pad(x * signs, ((0, 0), (0, folds * size - x.shape[1])))
        total = total + padded.reshape(-1, folds, size).sum(axis=1)
    return total
