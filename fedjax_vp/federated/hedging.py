"""Weights that a headset corrects while a session plays: which model has served this viewer so far.

Learned weights (`mixing.py`) say what serves most. Whether this viewer looks where the others look shows only
as the session goes on, and the headset sees it first: a forecast of k seconds ahead can be judged k seconds
later, without sending anything. So the mixture's weights follow Hedge with a prior (Freund and Schapire,
"A Decision-Theoretic Generalization of On-Line Learning", JCSS 1997):

    pi[l, k](t) ~ prior[l, k] exp(-rate L[l, k](t))                                             (1)
    L[l, k](t)  = sum over windows w < t of the session of gap_w s_k / s_j error[l, j](w),      (2)
                  j = min(k, t - w)
    prior       = (pi + spread) / 2                                                             (3)

in radians and seconds: gap_w is the time to the next window, so that the sum does not depend on how densely
windows lie, as long as they are no more than 5 s apart; a window stands for no more than that. A forecast of
5 s is judged from the first sample on, by as much of it as has come true: an error at j stands for one at k,
larger by as much as errors at k are on the whole (s, the mean error of validation windows). A session of 20 s
would otherwise be nearly over before the account of 5 s says anything.

Half of the prior is spread (3), for what the learned weights rule out would stay ruled out, however well it
serves this one viewer: over what is trained apart (`mixing.experts`, and the hierarchy, whose prefixes share
its part evenly), half of it for the first and half evenly over the others. The account begins with the first
window that is given, which may be long before the first that is measured (`Split.lead`).
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
    ahead: Int[np.ndarray, "horizon"]  # of each horizon, growing; to weigh models all are needed: 1, 2, ...
    rate_hz: float


def spread(experts: int, levels: int) -> Float[np.ndarray, "model"]:
    """`spread` of (3).

    >>> spread(0, 2).tolist(), spread(1, 2).tolist(), spread(2, 1).tolist()
    ([0.5, 0.5], [0.5, 0.25, 0.25], [0.5, 0.25, 0.25])
    """
    apart = np.r_[0.5, np.full(experts, 0.5 / experts)] if experts else np.ones(1)
    return np.r_[apart[:experts], np.full(levels, apart[-1] / levels)]


def prior(learned: Float[Array, "model horizon"], experts: int) -> Float[Array, "model horizon"]:
    """(3) of learned weights, a distribution over models of which the first are experts."""
    return (learned + spread(experts, learned.shape[0] - experts)[:, None]) / 2


def weights(
    prior: Float[Array, "model horizon"],
    error: Float[Array, "model window horizon"],
    typical: Float[Array, "horizon"],
    times: Times,
    rate: float,
) -> Float[Array, "model window horizon"]:
    """Weights at each window of a session, from nothing but what is known by then.

    Args:
        prior: with which every session begins.
        error: of each model in each window, radians; of windows after the last one, anything finite.
        typical: s of (2), radians, above 0.
        times: of the windows; `ahead` is 1, 2, ...
        rate: of (1), per radian and second.
    """
    now = times.now
    gap = jnp.diff(now, append=now[-1:]) / times.rate_hz  # 0 after the last window
    gap = jnp.minimum(gap, LONGEST_GAP_S)
    loss = jnp.cumsum(gap[None, :, None] * error / typical[None, None], axis=1)
    loss = jnp.pad(loss, ((0, 0), (1, 0), (0, 0)))  # of the first n windows
    ahead = np.append(times.ahead, times.ahead[-1] + 1)
    since = now[:, None] - jnp.asarray(ahead, jnp.int32)[None]
    count = jnp.searchsorted(now, since, side="right")  # windows so long ago: [window, horizon + 1]

    def at(count: Int[Array, "window horizon"]) -> Float[Array, "model window horizon"]:
        return jnp.take_along_axis(loss, count[None], axis=1)

    whole, older = at(count[:, :-1]), at(count[:, 1:])  # judged at j, and at j + 1 as well
    part = jnp.cumsum(whole - older, axis=2)  # judged at j or before, and not beyond
    part = jnp.pad(part, ((0, 0), (0, 0), (1, 0)))[:, :, :-1]
    told = typical[None, None] * (whole + part)
    return jax.nn.softmax(jnp.log(prior)[:, None] - rate * told, axis=0)
