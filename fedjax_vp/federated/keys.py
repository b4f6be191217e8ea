"""Where the random numbers of a run come from: a key for each of its parts.

A key of threefry is two numbers. The seed of a run and the number of a part are one as they are, so that
nothing has to be hashed, and compiled, to come to it. What a client, a session or a group draws for itself is
folded into the key of the part; what a client draws for several ends comes from keys beside its own.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

# Beyond any seed that one would give to synthetic data, whose keys are (0, seed).
INIT = 2**28  # parameters before the first round
ADAPT = INIT + 1  # a session's steps before it is evaluated
HOLD = INIT + 2  # groups while training holds them apart
NOISE = INIT + 3  # what tells rows apart when they part
PLACE = INIT + 4  # clients asked once training has ended
FRESH = INIT + 5  # parameters of each group
COHORT = 2**29  # and the index of a round: its participants
LOCAL = 2**30  # and the index of a round: its local work
STEPS = 2**30  # beside a client's key: and the index of a local step; what lies below is for its choices

_IMPL = "threefry2x32"


def key_of(seed: ArrayLike, part: ArrayLike) -> Array:
    """Key of a part of a run.

    Args:
        seed: of the run.
        part: one of the constants above; of a round, its index added.
    """
    numbers = [jnp.asarray(x).astype(jnp.uint32) for x in (seed, part)]
    return jax.random.wrap_key_data(jnp.stack(numbers), impl=_IMPL)


def apart(key: Array, number: ArrayLike) -> Array:
    """A key beside one that has been hashed (by `fold_in`): its numbers, moved on.

    Not for keys of `key_of`, whose neighbors are those of other runs.
    """
    return jax.random.wrap_key_data(
        jax.random.key_data(key) + jnp.asarray(number).astype(jnp.uint32), impl=_IMPL
    )


def of_round(seed: ArrayLike, index: ArrayLike) -> tuple[Array, Array]:
    """Keys of a round's cohort and of its local work, of which each client has its own by `fold_in`."""
    index = jnp.asarray(index).astype(jnp.uint32)
    return key_of(seed, COHORT + index), key_of(seed, LOCAL + index)
