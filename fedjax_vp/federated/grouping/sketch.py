"""Linear sketches of updates: random signs, then sums over strided blocks; O(d) a client, no scatters.

    S(x)_b = sum_{a: h(a) = b} s_a x_a,      s_a = +-1 independent                                 (1)
    E <S(x), S(y)> = <x, y>,
    Var <S(x), S(y)> = sum_{a != b, h(a) = h(b)} x_a^2 y_b^2 + x_a y_a x_b y_b
                     ~ (|x|^2 |y|^2 + <x, y>^2) / size                                             (2)

A count-sketch (Charikar, Chen, Farach-Colton 2002) whose hash h is not random but a fold: a leaf is read as
rows of `width` numbers, and the rows are summed. (2) holds when the energy of x and y is spread over the
buckets. Random signs alone would not see to that: in rows as long as a layer is wide, a single active unit (a
column of the kernel) would fall into one bucket. So `width` has no factor in common with the leaf's strides:
rows, columns and blocks of a kernel then spread evenly. Leaves start where the one before has ended, so that
small ones lie side by side, and updates of at most `size` numbers are kept exactly, but for their signs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Key

from fedjax_vp.models.base import Params


def sketch(delta: Params, key: Key[Array, ""], size: int) -> Float[Array, "unit size"]:
    """Sketches updates of units; inner products are unbiased over keys.

    Linear: sketches of a sum, a mean or a residual follow from sketches of its terms, as long as the key is
    the same for all clients and rounds. The signs have no unit axis.

    Args:
        delta: leaves [unit, ...].
        key: of the signs.
        size: numbers in a sketch; 0: the update itself, leaves in order of their names.
    """
    leaves = [x for _, x in sorted(delta.items())]
    if not size:
        return jnp.concatenate([x.reshape(x.shape[0], -1) for x in leaves], axis=1)
    total = jnp.zeros((leaves[0].shape[0], size))
    offset = 0
    signs = _signs(key, tuple(math.prod(x.shape[1:]) for x in leaves))
    for own, x in zip(signs, leaves, strict=True):
        flat = x.reshape(x.shape[0], -1)
        folded = _fold(flat, own, _width(x.shape[1:], size))
        folded = jnp.pad(folded, ((0, 0), (0, size - folded.shape[1])))
        total = total + jnp.roll(folded, offset, axis=1)
        offset = (offset + flat.shape[1]) % size
    return total


def _width(shape: tuple[int, ...], size: int) -> int:
    """Longest row that has no factor in common with the leaf's strides; `size` where nothing is folded."""
    if math.prod(shape) <= size:
        return size
    stride = math.prod(shape[1:])
    return next(width for width in range(size, 0, -1) if math.gcd(width, stride) == 1)


def _signs(key: Key[Array, ""], sizes: tuple[int, ...]) -> Sequence[Float[ArrayLike, "d"]]:
    """Signs of each leaf; a known key makes them constants of what is compiled, not drawn by each client."""
    if isinstance(key, Tracer):
        return [row[:size] for row, size in zip(_drawn(key, sizes), sizes, strict=True)]
    with jax.ensure_compile_time_eval():
        return _constants(np.asarray(jax.random.key_data(key)).tobytes(), jax.random.key_impl(key), sizes)


@lru_cache(maxsize=64)
def _constants(data: bytes, impl: Any, sizes: tuple[int, ...]) -> Sequence[np.ndarray]:
    """The signs of a key, of which its numbers are given: every level and every trace asks for the same."""
    key = jax.random.wrap_key_data(jnp.asarray(np.frombuffer(data, np.uint32)), impl=impl)
    drawn = np.asarray(jax.jit(_drawn, static_argnums=1)(key, sizes), np.int8)
    return [row[:size].astype(np.float32) for row, size in zip(drawn, sizes, strict=True)]


def _drawn(key: Key[Array, ""], sizes: tuple[int, ...]) -> Float[Array, "leaf d"]:
    """One draw for all leaves, as long as the longest."""
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(len(sizes)))
    return jax.vmap(lambda one: jax.random.rademacher(one, (max(sizes),), jnp.float32))(keys)  # over leaves


def _fold(
    flat: Float[Array, "unit d"], signs: Float[ArrayLike, "d"], width: int
) -> Float[Array, "unit width"]:
    """Signs, then the sum of rows; the product with ones is the fastest form of that sum on a CPU."""
    rows, rest = divmod(flat.shape[1], width)
    signed = flat * jnp.asarray(signs)[None]
    tail = jnp.pad(signed[:, rows * width :], ((0, 0), (0, width - rest)))
    if not rows:
        return tail
    body = signed[:, : rows * width].reshape(-1, rows, width)
    ones = jnp.ones(rows, flat.dtype)
    return tail + jnp.einsum("r,urw->uw", ones, body, precision=jax.lax.Precision.HIGHEST)
