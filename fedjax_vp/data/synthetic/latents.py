"""Traits of users and videos as pure functions of their index, and what a generated session is.

Traits come from a golden-ratio (Kronecker) sequence with a shift drawn from the key: element i of the
sequence is frac(shift + i / golden ratio), computed exactly in 32-bit integers. It needs no storage, any
index costs the same, and the first n elements of any n spread evenly, so that a federation of 24 users
already has the mean and the variance it is calibrated to.

Everything else of an item (user, video, session) comes from one draw of random bits under its own key:
each further draw inside a jit costs a good tenth of a second of compilation on a CPU.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt32

LONGEST = {"duration_s": 100_000, "rate_hz": 1000}  # what settings of generated sessions may ask for
_GOLDEN = np.uint32(2654435769)  # 2^32 / golden ratio


class SyntheticSession(NamedTuple):
    """One generated session; under `vmap`, a stack of them."""

    direction: Float[Array, "time 3"]  # unit vectors; the last valid one repeated to the end
    length: Int[Array, ""]  # valid samples
    user: Int[Array, ""]
    video: Int[Array, ""]
    user_category: Int[Array, ""]  # ground truth; 0 where nothing is planted
    video_category: Int[Array, ""]


class Streams(NamedTuple):
    """Independent sources of randomness of a federation."""

    shifts: UInt32[Array, "4"]  # starts of the sequences of traits
    users: Key[Array, ""]
    videos: Key[Array, ""]
    sessions: Key[Array, ""]


def streams(key: Key[Array, ""]) -> Streams:
    """Sources of the federation with this root key."""
    traits, users, videos, sessions = jax.random.split(key, 4)
    return Streams(jax.random.bits(traits, (4,), jnp.uint32), users, videos, sessions)


def draw(key: Key[Array, ""], index: Int[Array, ""], shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Uniform numbers in the open interval (0, 1) that belong to the item with this index."""
    return _unit(jax.random.bits(jax.random.fold_in(key, index), shape, jnp.uint32))


def to_normal(uniform: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Standard normal quantiles."""
    return math.sqrt(2) * jax.lax.erf_inv(2 * uniform - 1)


def even(shift: UInt32[Array, ""], index: Int[Array, ""]) -> Float[Array, ""]:
    """Evenly spread element of (0, 1) of an index."""
    return _unit(shift + index.astype(jnp.uint32) * _GOLDEN)


def even_category(shift: UInt32[Array, ""], index: Int[Array, ""], categories: int) -> Int[Array, ""]:
    """Category in 0 .. categories - 1 of an index, all of about one size."""
    return jnp.minimum((even(shift, index) * categories).astype(jnp.int32), categories - 1)


def _unit(bits: UInt32[Array, "*shape"]) -> Float[Array, "*shape"]:
    unit = (bits >> 8).astype(jnp.float32) * 2.0**-24 + 2.0**-25
    return jnp.minimum(unit, 1 - 2.0**-24)  # the largest would round to 1, whose normal quantile is infinite
