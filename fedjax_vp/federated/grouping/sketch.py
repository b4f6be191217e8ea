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

import itertools
import math
from collections.abc import Mapping
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from fedjax_vp.models.base import Params

_SEED = 5


def sketch(
    delta: Params, size: int, given: Mapping[str, Float[ArrayLike, "d"]] | None = None
) -> Float[Array, "unit size"]:
    """Sketches updates of units; inner products are unbiased over signs.

    Linear: sketches of a sum, a mean or a residual follow from sketches of its terms where the signs are
    the same, as the default ones are for all clients and rounds. They have no unit axis.

    Args:
        delta: leaves [unit, ...].
        size: numbers in a sketch; 0: the update itself, leaves in order of their names.
        given: signs of each leaf (see `signs`; default: those of the simulator's own seed).
    """
    leaves = sorted(delta.items())
    if not size:
        return jnp.concatenate([x.reshape(x.shape[0], -1) for _, x in leaves], axis=1)
    given = signs(_SEED, delta) if given is None else given
    total = jnp.zeros((leaves[0][1].shape[0], size))
    offset = 0
    for name, x in leaves:
        flat = x.reshape(x.shape[0], -1)
        folded = _fold(flat, given[name], _width(x.shape[1:], size))
        folded = jnp.pad(folded, ((0, 0), (0, size - folded.shape[1])))
        total = total + jnp.roll(folded, offset, axis=1)
        offset = (offset + flat.shape[1]) % size
    return total


def signs(seed: int, delta: Params) -> dict[str, np.ndarray]:
    """Signs of each leaf: constants of what is compiled, drawn by NumPy, for which nothing is compiled.

    Args:
        seed: of the signs.
        delta: leaves [unit, ...], of which only the shapes matter.
    """
    return _drawn(seed, tuple((name, math.prod(x.shape[1:])) for name, x in sorted(delta.items())))


@lru_cache(maxsize=64)
def _drawn(seed: int, sizes: tuple[tuple[str, int], ...]) -> dict[str, np.ndarray]:
    """Every level and every trace asks for the same; the raw bits are those of any NumPy."""
    total = sum(size for _, size in sizes)
    bits = np.unpackbits(np.random.Philox(seed).random_raw(-(-total // 64)).astype("<u8").view(np.uint8))
    drawn = 2 * bits.astype(np.float32) - 1
    drawn.setflags(write=False)
    ends = itertools.accumulate(size for _, size in sizes)
    return {name: drawn[end - size : end] for (name, size), end in zip(sizes, ends, strict=True)}


def _width(shape: tuple[int, ...], size: int) -> int:
    """Longest row that has no factor in common with the leaf's strides; `size` where nothing is folded."""
    if math.prod(shape) <= size:
        return size
    stride = math.prod(shape[1:])
    return next(width for width in range(size, 0, -1) if math.gcd(width, stride) == 1)


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
