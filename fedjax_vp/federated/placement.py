"""Which rows a session uses when it is evaluated: newcomers are placed in groups that others have learned.

A unit that trained keeps its group; at a loss-based level all training units choose once more, on their
training windows and with the rows as they are now. A session whose unit never trained (an unseen user or
video) joins the row with the least loss on its `adapt` windows, its first seconds, before any test window; of
the rows that training units use, for others hold what they started with. Without such windows, or such rows,
it uses the row most units use where the level is the coarsest owner of a leaf, and otherwise none: a zero
row, so that the levels above speak for it. The same holds for a unit that could have trained but was never
drawn, at levels grouped by updates.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from fedjax_vp.federated import assignment, levels
from fedjax_vp.federated import learned as learned_of
from fedjax_vp.federated.assignment import Chosen
from fedjax_vp.federated.federation import Arrays, cut_early
from fedjax_vp.federated.grouping.settings import IFCA
from fedjax_vp.federated.local import Client
from fedjax_vp.federated.round import State
from fedjax_vp.federated.simulator import Simulator


def make_place(sim: Simulator) -> Callable[..., State]:
    """A function from a state to the same state with every session that can be placed in a group.

    It takes other arrays than the federation's as a second argument: with fewer windows to place by, say.
    """
    learned = [i for i, level in enumerate(sim.layout.levels) if learned_of.settings_of(level)]
    if not learned:
        return lambda state, arrays=None: state
    newcomers = {i: _newcomers(sim, i) for i in learned}

    @jax.jit
    def place(state: State, arrays: Arrays, newcomers: dict[int, Int[Array, "newcomer"]]) -> State:
        states = _choose_again(sim, state, arrays)
        for index in learned:
            states = _place_level(sim, states, arrays, index, newcomers[index])
        return state._replace(levels=states)

    return lambda state, arrays=sim.federation.arrays: place(state, arrays, newcomers)


def _newcomers(sim: Simulator, index: int) -> Int[Array, "newcomer"]:
    """Sessions with adapt windows whose unit is known and has no training window."""
    arrays, unit = sim.federation.arrays, sim.groupings[index].unit
    assert unit is not None
    trains = np.asarray(arrays.train.count) > 0
    old = np.unique(unit[trains])
    early = np.asarray(arrays.adapt.count) > 0
    return jnp.asarray(np.flatnonzero(early & (unit >= 0) & ~np.isin(unit, old)), jnp.int32)


def _choose_again(sim: Simulator, state: State, arrays: Arrays) -> tuple[levels.LevelState, ...]:
    """Every training unit's choice among the rows as they are now, at loss-based levels."""
    if not any(isinstance(level.grouping, IFCA) for level in sim.layout.levels):
        return state.levels
    clients = first_clients(sim, state.seed, sim.federation.num_clients)
    last = jnp.maximum(state.round - 1, 0)  # in the round to come the rows may part, but they have not yet
    return assignment.assign(sim, state.levels, arrays, clients, last)[0]


def first_clients(sim: Simulator, seed: Int[Array, ""], count: int) -> Client:
    """The first `count` clients as a cohort, padded to equal shares of the devices."""
    padded = -(-count // sim.mesh.size) * sim.mesh.size
    index = jnp.minimum(jnp.arange(padded), count - 1)
    key = jax.random.fold_in(jax.random.key(4), seed)
    keys = jax.vmap(lambda c: jax.random.fold_in(key, c))(index)  # over clients
    return Client(index, jnp.arange(padded) < count, keys, None)


def _place_level(
    sim: Simulator,
    states: tuple[levels.LevelState, ...],
    arrays: Arrays,
    index: int,
    newcomers: Int[Array, "newcomer"],
) -> tuple[levels.LevelState, ...]:
    state, known = states[index], states[index].learned
    groups = known.share.shape[1]
    users = learned_of.users(known, state.mass.shape[0]).reshape(-1, groups)
    first_owner = any(sim.layout.coarsest(leaf) == index for leaf in sim.layout.owned[index])
    stranger = (known.unit < 0) | (known.seen[jnp.maximum(known.unit, 0)] == 0)
    # A session that is unknown at the label above, too, can only be sent to where most of parent 0 are.
    parent = jnp.maximum(jnp.asarray(sim.groupings[index].code), 0)
    usual = parent * groups + jnp.argmax(users, axis=1)[parent]
    group = jnp.where(stranger[:, None], usual[:, None], state.members.group)
    share = jnp.where(stranger[:, None], 0.0, state.members.share)
    share = share.at[:, 0].set(jnp.where(stranger, jnp.float32(first_owner), share[:, 0]))
    states = (*states[:index], state._replace(members=levels.Membership(group, share)), *states[index + 1 :])
    if not newcomers.size:
        return states

    def one(session: Int[Array, ""]) -> Array:
        now = arrays.adapt.of(session)
        real = jnp.arange(now.shape[0]) < arrays.adapt.count[session]
        windows, seen = cut_early(arrays, sim.federation.shape, session, now)
        weight = jnp.where(real, jnp.mean(seen, axis=1), 0.0)
        verdict = assignment.judge(sim.task, states, index, Chosen(session, windows, weight, seen))
        regret = -verdict if sim.groupings[index].soft else verdict
        return jnp.argmin(jnp.where(users[parent[session]] > 0, regret, jnp.inf))

    trained = jnp.any(users[parent[newcomers]] > 0, axis=1) & (arrays.adapt.count[newcomers] > 0)
    row = parent[newcomers] * groups + jax.lax.map(one, newcomers)
    group = group.at[newcomers, 0].set(jnp.where(trained, row, group[newcomers, 0]))
    share = share.at[newcomers, 0].max(trained.astype(jnp.float32))
    return (*states[:index], state._replace(members=levels.Membership(group, share)), *states[index + 1 :])
