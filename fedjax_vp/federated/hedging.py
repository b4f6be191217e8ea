"""Weights that a headset corrects while a session plays: which model has served this viewer so far.

Learned weights (`mixing.py`) say what serves most. Whether this viewer looks where the others look shows only
as the session goes on, and the headset sees it first: a forecast of k seconds ahead can be judged k seconds
later, without sending anything. So the mixture's weights follow Hedge with a prior (Freund and Schapire,
"A Decision-Theoretic Generalization of On-Line Learning", JCSS 1997):

    pi[l, k](t) ~ prior[l, k] exp(-rate L[l, k](t))                                             (1)
    L[l, k](t)  = sum over windows w of the session, w + k <= t, of gap_w error[l, k](w)        (2)
    prior       = (pi + spread) / 2                                                             (3)

in radians and seconds: gap_w is the time to the next window, so that the sum does not depend on how densely
windows lie, as long as they are no more than 5 s apart; a window stands for no more than that. Half of the
prior is spread (3), for what the learned weights rule out would stay ruled out, however well it serves this
one viewer: evenly over what is trained apart (`mixing.experts`, and the hierarchy, whose prefixes share its
part evenly). Only the windows that are measured enter the account, which begins with the first of them.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

LONGEST_GAP_S = 5.0


class Times(NamedTuple):
    """When the windows of a session are, and what is forecast, in samples."""

    now: Int[Array, "window"]  # of the last observation, growing; equal ones pad the last window
    ahead: Int[np.ndarray, "horizon"]  # of each horizon, from 1
    rate_hz: float


def evenly(experts: int, levels: int) -> Float[np.ndarray, "model"]:
    """`spread` of (3).

    >>> evenly(0, 2).tolist(), evenly(1, 2).tolist()
    ([0.5, 0.5], [0.5, 0.25, 0.25])
    """
    apart = experts + 1
    return np.r_[np.full(experts, 1 / apart), np.full(levels, 1 / apart / levels)]


def weights(
    learned: Float[Array, "level horizon"],
    spread: Float[np.ndarray, "level"],
    error: Float[Array, "level window horizon"],
    times: Times,
    rate: float,
) -> Float[Array, "level window horizon"]:
    """Weights at each window of a session, from nothing but what is known by then.

    Args:
        learned: the weights common to the session, a distribution over models.
        spread: the other half of the prior, at every horizon.
        error: of each prefix in each window, radians; of windows after the last one, anything finite.
        times: of the windows and horizons.
        rate: of (1), per radian and second.
    """
    now = times.now
    gap = jnp.diff(now, append=now[-1:]) / times.rate_hz  # 0 after the last window
    gap = jnp.minimum(gap, LONGEST_GAP_S)
    loss = jnp.cumsum(gap[None, :, None] * error, axis=1)
    loss = jnp.pad(loss, ((0, 0), (1, 0), (0, 0)))  # of the first n windows

    def known(ahead: Int[Array, ""], loss: Float[Array, "level count"]) -> Float[Array, "level window"]:
        return loss[:, jnp.searchsorted(now, now - ahead, side="right")]

    told = jax.vmap(known, (0, 2), 2)(jnp.asarray(times.ahead, jnp.int32), loss)
    prior = (learned + spread[:, None]) / 2
    return jax.nn.softmax(jnp.log(prior)[:, None] - rate * told, axis=0)
