"""Where the viewers of a group have looked, by video time: a leaf that is counted once and never trained.

    C_g[b] = sum_{i in g} w_i[b] (1, x_i[b])                                                    (1)

x_i[b] is the mean direction of session i in bin b, w_i[b] the share of the bin that its training windows
cover. The server needs only the sums, which headsets can send masked, once, before the first round (Bonawitz
et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017). A headset that
trains takes its own part out,

    C_g - (w_i, w_i x_i),                                                                       (2)

for a viewer is no witness of where others look: with its own part left in, the network would learn to trust
the crowd more than a newcomer can. Only a headset that holds sessions of several groups in one model, as
pooled training does, leaves its part in.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fedjax_vp.federated.federation import Arrays, traces_of
from fedjax_vp.federated.hierarchy import Layout
from fedjax_vp.federated.levels import LevelState
from fedjax_vp.models.base import Params, WindowShape
from fedjax_vp.models.features import CROWD_BIN_S, VIDEO_CROWD


def part(arrays: Arrays, shape: WindowShape, bins: int, session: Int[Array, ""]) -> Float[Array, "{bins} 4"]:
    """A session's own term of (1), from the samples of its training windows."""
    traces, row = traces_of(arrays, session[None])
    direction, now = traces.direction[row[0]], arrays.train.of(session)
    counts = jnp.where(jnp.arange(now.shape[0]) < arrays.train.count[session], 1.0, 0.0)
    edges = jnp.zeros(direction.shape[0] + 1).at[now - shape.history + 1].add(counts)
    seen = jnp.cumsum(edges.at[now + shape.horizon + 1].add(-counts))[:-1] > 0.5
    time = traces.t0[row[0]] + jnp.arange(direction.shape[0]) / shape.rate_hz
    at = jnp.floor(time / CROWD_BIN_S + 1e-4).astype(jnp.int32)
    one = jnp.concatenate([jnp.ones((direction.shape[0], 1)), direction], axis=1)
    share = jnp.where(seen, 1 / (shape.rate_hz * CROWD_BIN_S), 0.0)[:, None]
    return jnp.zeros((bins, 4)).at[at].add(share * one, mode="drop")


def counted(
    layout: Layout, states: tuple[LevelState, ...], arrays: Arrays, shape: WindowShape
) -> tuple[LevelState, ...]:
    """The same rows, those of the coarsest level that owns the leaf with (1) in it.

    One group for everybody has no crowd of its own: its row stays zero, which says "unknown".
    """
    if not any(VIDEO_CROWD in state.rows for state in states):
        return states
    index = layout.coarsest(VIDEO_CROWD)
    if not layout.levels[index].by:
        return states
    state, rows = states[index], states[index].rows[VIDEO_CROWD]

    def add(place: Int[Array, ""], total: Array) -> Array:
        session = arrays.bags.session[place]
        share = state.members.share[session, :, None, None]
        own = part(arrays, shape, rows.shape[1], session)
        return total.at[state.members.group[session]].add(share * own[None])

    total = jax.lax.fori_loop(0, arrays.bags.session.shape[0], add, jnp.zeros_like(rows))
    new = state._replace(rows=state.rows | {VIDEO_CROWD: total})
    return (*states[:index], new, *states[index + 1 :])


def without_own(
    theta: Params, arrays: Arrays, shape: WindowShape, session: Int[Array, "slot"], real: Bool[Array, "slot"]
) -> Params:
    """(2) for a client whose rows of the leaf belong to these sessions, one each."""
    if VIDEO_CROWD not in theta or theta[VIDEO_CROWD].shape[0] != session.shape[0]:
        return theta
    bins = theta[VIDEO_CROWD].shape[1]
    own = jax.vmap(lambda s: part(arrays, shape, bins, s))(session)  # over slots
    return theta | {VIDEO_CROWD: theta[VIDEO_CROWD] - jnp.where(real[:, None, None], own, 0.0)}
