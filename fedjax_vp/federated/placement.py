"""Which rows a session uses when it is evaluated: newcomers are placed in groups that others have learned.

A unit that trained keeps its group; at a loss-based level all training units choose once more, on their
training windows and with the rows as they are now. A session whose unit never trained (an unseen user or
video) joins the row with the least loss on its `adapt` windows, its first seconds, before any test window; of
the rows that training units use, for others hold what they started with. Without such windows, or such rows,
it uses the row most units use where the level is the coarsest owner of a leaf, and otherwise none: a zero
row, so that the levels above speak for it. The same holds for a unit that could have trained but was never
drawn, at levels grouped by updates.

Where `newcomers` says `update`, the session trains on these windows instead, and the server compares its
update (its sketch) with the members': under CFL at the model of each split, on the way down the tree
(Sattler et al. 2021), otherwise from the middle of the rows in use, as members' updates count.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fedjax_vp.federated import assignment, keys, levels
from fedjax_vp.federated import learned as learned_of
from fedjax_vp.federated.assignment import Chosen
from fedjax_vp.federated.federation import Arrays, cut_early
from fedjax_vp.federated.grouping import cluster, split_tree
from fedjax_vp.federated.grouping.settings import CFL, IFCA, ByUpdates
from fedjax_vp.federated.grouping.sketch import sketch
from fedjax_vp.federated.local import Client
from fedjax_vp.federated.round import State
from fedjax_vp.federated.simulator import Simulator
from fedjax_vp.models.base import Params


def make_place(sim: Simulator) -> Callable[..., State]:
    """A function from a state to the same state with every session that can be placed in a group.

    It takes other arrays than the federation's as a second argument: with fewer windows to place by, say.
    """
    learned = [i for i, level in enumerate(sim.layout.levels) if learned_of.settings_of(level)]
    if not learned:
        return lambda state, arrays=None: state
    newcomers = {i: _newcomers(sim, i) for i in learned}
    again = jax.jit(partial(_choose_again, sim))
    by_loss = jax.jit(partial(_place_level, sim), static_argnums=3)
    trained = jax.jit(partial(_updates, sim), static_argnums=3)

    def place(state: State, arrays: Arrays = sim.federation.arrays) -> State:
        states = again(state, arrays)
        for index in learned:
            settings, some = sim.layout.levels[index].grouping, newcomers[index]
            if not isinstance(settings, ByUpdates) or settings.newcomers == "loss":
                states = by_loss(states, arrays, some, index)
                continue
            joined = by_loss(states, arrays, some[:0], index)
            if some.size:
                found = jax.device_get(trained(joined, arrays, some, index))
                level = _joined(settings, jax.device_get(joined[index]), np.asarray(some), found)
                joined = (*joined[:index], level, *joined[index + 1 :])
            states = joined
        return state._replace(levels=states)

    return place


def _newcomers(sim: Simulator, index: int) -> Int[Array, "newcomer"]:
    """Sessions with adapt windows whose unit, as far as is known before, has no training window."""
    arrays, unit = sim.federation.arrays, sim.groupings[index].finest
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
    key = keys.key_of(seed, keys.PLACE)
    own = jax.vmap(lambda c: jax.random.fold_in(key, c))(index)  # over clients
    return Client(index, jnp.arange(padded) < count, own, None)


def _place_level(
    sim: Simulator,
    states: tuple[levels.LevelState, ...],
    arrays: Arrays,
    newcomers: Int[Array, "newcomer"],
    index: int,
) -> tuple[levels.LevelState, ...]:
    states = learned_of.follow(sim.layout.levels, states, index)
    state, known = states[index], states[index].learned
    groups = known.share.shape[1]
    users = learned_of.users(known, state.mass.shape[0]).reshape(-1, groups)
    first_owner = any(sim.layout.coarsest(leaf) == index for leaf in sim.layout.owned[index])
    stranger = (known.unit < 0) | (known.seen[jnp.maximum(known.unit, 0)] == 0)
    parent = _parent(sim, known, index)
    usual = parent * groups + jnp.argmax(users, axis=1)[parent]
    group = jnp.where(stranger[:, None], usual[:, None], state.members.group)
    share = jnp.where(stranger[:, None], 0.0, state.members.share)
    share = share.at[:, 0].set(jnp.where(stranger, jnp.float32(first_owner), share[:, 0]))
    states = (*states[:index], state._replace(members=levels.Membership(group, share)), *states[index + 1 :])
    if not newcomers.size:
        return states

    def one(session: Int[Array, ""]) -> Array:
        verdict = assignment.judge(sim.task, states, index, _early(sim, arrays, session))
        regret = -verdict if sim.groupings[index].soft else verdict
        return jnp.argmin(jnp.where(users[parent[session]] > 0, regret, jnp.inf))

    trained = jnp.any(users[parent[newcomers]] > 0, axis=1) & (arrays.adapt.count[newcomers] > 0)
    trained &= stranger[newcomers]
    row = parent[newcomers] * groups + jax.lax.map(one, newcomers)
    group = group.at[newcomers, 0].set(jnp.where(trained, row, group[newcomers, 0]))
    share = share.at[newcomers, 0].max(trained.astype(jnp.float32))
    return (*states[:index], state._replace(members=levels.Membership(group, share)), *states[index + 1 :])


def _parent(sim: Simulator, known: learned_of.Learned, index: int) -> Int[Array, "session"]:
    """Parent group of each session at a level; where it is unknown at the level or label above, group 0's."""
    begun = jnp.maximum(jnp.asarray(sim.groupings[index].code), 0)
    return jnp.where(known.unit >= 0, known.within[jnp.maximum(known.unit, 0)], begun)


def _early(sim: Simulator, arrays: Arrays, session: Int[Array, ""]) -> Chosen:
    """A newcomer's first windows."""
    now = arrays.adapt.of(session)
    real = jnp.arange(now.shape[0]) < arrays.adapt.count[session]
    windows, seen = cut_early(arrays, sim.federation.shape, session, now)
    return Chosen(session, windows, jnp.where(real, jnp.mean(seen, axis=1), 0.0), seen)


def _updates(
    sim: Simulator,
    states: tuple[levels.LevelState, ...],
    arrays: Arrays,
    newcomers: Int[Array, "newcomer"],
    index: int,
) -> Float[Array, "newcomer place q"]:
    """Sketches of what newcomers learn from all of their first windows at once, at each place asked for.

    The places are the models of the splits of CFL (in order of time), or the middle of the rows in use.
    """
    settings, state = cast(ByUpdates, sim.layout.levels[index].grouping), states[index]
    local = sim.method.local
    loss_fn = local.loss.build()

    def one(session: Int[Array, ""]) -> Array:
        inputs, target = (chosen := _early(sim, arrays, session)).windows
        model_of = assignment.with_row(sim.task, states, index, session)
        weight = chosen.weight / jnp.maximum(jnp.sum(chosen.weight), 1e-9)

        def loss(row: Params) -> Array:
            return weight @ sim.task.predictor.loss(model_of(row), inputs, target, loss_fn, chosen.seen)

        def train(row: Params) -> Array:
            def step(_: Array, at: Params) -> Params:
                return jax.tree.map(lambda p, d: p - local.lr * d, at, jax.grad(loss)(at))

            end = jax.lax.fori_loop(0, local.steps, step, row)
            moved = {n: (end[n] - row[n])[None] for n in row}
            return sketch(moved, settings.sketch)[0]

        if isinstance(settings, CFL):
            return jax.lax.map(train, state.learned.tree.model)
        parent = _parent(sim, state.learned, index)[session]
        return train({n: x[parent] for n, x in _middle(state, settings.groups).items()})[None]

    return jax.lax.map(one, newcomers)


def _middle(state: levels.LevelState, groups: int) -> Params:
    """Mean of the rows in use of each parent group."""
    used = (learned_of.users(state.learned, state.mass.shape[0]) > 0).reshape(-1, groups)
    weight = used / jnp.maximum(jnp.sum(used, axis=1, keepdims=True), 1)
    parts = {n: x.reshape(-1, groups, *x.shape[1:]) for n, x in state.rows.items()}
    return {n: jnp.einsum("pg,pg...->p...", weight, x) for n, x in parts.items()}


def _joined(
    settings: ByUpdates, state: levels.LevelState, newcomers: np.ndarray, update: np.ndarray
) -> levels.LevelState:
    """The level (on the host) with newcomers in the groups that their updates lead to."""
    known = state.learned
    group, share = np.array(state.members.group), np.array(state.members.share)
    unit = known.unit[newcomers]
    stranger = (unit >= 0) & (known.seen[np.maximum(unit, 0)] == 0)
    newcomers, update = newcomers[stranger], update[stranger]
    parent = known.within[np.maximum(known.unit[newcomers], 0)]
    seen = known.seen > 0
    for one in np.unique(parent):
        member, some = np.flatnonzero(seen & (known.within == one)), parent == one
        if not len(member):
            continue
        base, here = one * settings.groups, newcomers[some]
        if isinstance(settings, CFL):
            row = split_tree.route(known.tree, update[some], np.full(len(here), base, np.int32))
        else:
            was = np.argmax(known.share[member], axis=1)
            evidence = cluster.Evidence(known.signal[member], known.seen[member], was)
            row = base + cluster.join(settings, evidence, update[some, 0])
        group[here, 0], share[here, 0] = row, 1.0
    return state._replace(members=levels.Membership(jnp.asarray(group), jnp.asarray(share)))
