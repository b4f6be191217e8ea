"""A whole federated round, and a chunk of them, as one compiled function.

The cohort is dealt to the devices of a mesh; each trains its clients and adds up weighted sums (`training`),
so that nothing of size clients x parameters exists. The sums meet in one reduction, and pooling follows on
every device alike. Keys are (seed, part and round) -> client: a client's draws depend neither on its place
in the cohort nor on blocks, devices or chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from fedjax_vp.federated import (
    assignment,
    crowd,
    keys,
    operations,
    participation,
    pooling,
    server,
    stretches,
    training,
)
from fedjax_vp.federated import learned as learned_of
from fedjax_vp.federated.federation import Arrays, client_windows
from fedjax_vp.federated.hierarchy import Layout
from fedjax_vp.federated.levels import LevelState
from fedjax_vp.federated.local import Client, optimizer, weigh
from fedjax_vp.federated.precision import products
from fedjax_vp.federated.settings import Method
from fedjax_vp.federated.simulator import Simulator
from fedjax_vp.federated.sums import Totals


class State(NamedTuple):
    """Everything a run carries from round to round."""

    round: Int[Array, ""]
    seed: Int[Array, ""]
    levels: tuple[LevelState, ...]
    clients: Any  # private state, leading axis client (None where there is none)
    experts: tuple[State, ...] = ()  # of the methods trained beside (`Mixing.experts`)


class Hyper(NamedTuple):
    """Traced numbers: they may be batched to vmap over a sweep."""

    local_lr: Float[Array, ""]
    pooling: pooling.Hyper
    num_rounds: Int[Array, ""]
    experts: tuple[Hyper, ...] = ()


class RoundInfo(NamedTuple):
    """Facts of a round that are not carried on."""

    loss: Float[Array, ""]  # mean over reporting clients
    invited: Int[Array, ""]
    reported: Int[Array, ""]
    nonfinite: Int[Array, ""]  # clients left out because their result was not finite
    sessions_down: Int[Array, ""]  # sessions of the invited clients, and of those that reported
    sessions_up: Int[Array, ""]
    healthy: Bool[Array, "model"]  # rows are finite and not every client was left out; then of each expert
    moved: Int[Array, "level"]  # units that changed groups at the start of the round


def hyper(method: Method, num_rounds: int) -> Hyper:
    """The traced numbers of a method."""
    fixed = [1.0 if level.shrinkage == "auto" else level.shrinkage for level in method.levels]
    return Hyper(
        local_lr=jnp.float32(method.local.lr),
        pooling=pooling.Hyper(
            server_lr=jnp.asarray([level.server.lr for level in method.levels], jnp.float32),
            shrinkage=jnp.asarray(fixed, jnp.float32),
            progress=jnp.asarray([level.progress for level in method.levels], jnp.float32),
        ),
        num_rounds=jnp.int32(num_rounds),
        experts=tuple(hyper(one, num_rounds) for one in method.experts),
    )


def init(sim: Simulator, seed: Int[Array, ""], arrays: Arrays | None = None) -> State:
    """The state before the first round; `arrays`, the federation's, are an argument where this is jitted."""
    arrays = sim.federation.arrays if arrays is None else arrays
    params = sim.task.predictor.init(keys.key_of(seed, keys.INIT))
    clients = None
    if sim.method.local.keep_state:
        rows = {n: sim.federation.max_sessions if n in sim.layout.varying else 1 for n in params}
        one = optimizer(sim.method.local).init(
            {n: jnp.broadcast_to(p, (rows[n], *p.shape)) for n, p in params.items()}
        )
        count = sim.federation.num_clients
        clients = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *jnp.shape(x))), one)
    states = learned_of.begin(sim.layout, sim.groupings, sim.task.predictor.init, seed)
    states = crowd.counted(sim.layout, states, arrays, sim.federation.shape)
    experts = tuple(init(one, seed, arrays) for one in sim.experts)
    state = State(jnp.zeros((), jnp.int32), jnp.asarray(seed, jnp.int32), states, clients, experts)
    return jax.tree.map(jnp.copy, state)  # no buffer twice, so that a chunk may take them all over


def make_round(sim: Simulator) -> Callable[[State, Arrays, Hyper], tuple[State, RoundInfo]]:
    """One round as a pure function of state, device arrays and traced numbers."""
    meet = _meeting(sim)

    @products("float32")
    def round_fn(state: State, arrays: Arrays, numbers: Hyper) -> tuple[State, RoundInfo]:
        return meet(state, arrays, numbers, *invite(sim, state.seed, state.round, arrays))

    return round_fn


def _meeting(sim: Simulator) -> Callable[..., tuple[State, RoundInfo]]:
    """What a round does once its cohort is drawn; experts are trained by the same participants."""
    train, pool = training.trainer(sim), pooler(sim)
    beside = [_meeting(one) for one in sim.experts]

    def meet(
        state: State,
        arrays: Arrays,
        numbers: Hyper,
        cohort: participation.Cohort,
        clients: Client,
    ) -> tuple[State, RoundInfo]:
        clients = clients._replace(state=jax.tree.map(lambda x: x[cohort.client], state.clients))
        clock = (state.round, numbers.num_rounds)
        lr = numbers.local_lr * server.factor(sim.method.local.schedule, *clock)
        dealt, moved = assignment.assign(sim, state.levels, arrays, clients, state.round, state.seed)
        totals, private, loss, finite, seen = train(clients, dealt, arrays, lr)
        reported = cohort.reports & finite
        rows = pool(dealt, totals, arrays, numbers.pooling, clock)
        rows = learned_of.observe_updates(sim.layout, dealt, rows, seen)
        rows = learned_of.attract(sim.layout, rows)
        rows = _absorb(sim.layout, rows, state.round)
        # Padded places and drop-outs write nowhere.
        target = jnp.where(reported, cohort.client, sim.federation.num_clients)
        kept = jax.tree.map(lambda x, new: x.at[target].set(new, mode="drop"), state.clients, private)
        others = zip(beside, state.experts, numbers.experts, strict=True)
        trained = [one(its, arrays, its_numbers, cohort, clients) for one, its, its_numbers in others]
        new = State(state.round + 1, state.seed, rows, kept, tuple(one for one, _ in trained))
        info = _info(sim, new, arrays, cohort, (reported, loss))
        healthy = jnp.concatenate([info.healthy, *(its.healthy for _, its in trained)])
        lost = info.nonfinite + sum(its.nonfinite for _, its in trained)
        return new, info._replace(moved=moved, healthy=healthy, nonfinite=lost)

    return meet


def invite(
    sim: Simulator, seed: ArrayLike, index: ArrayLike, arrays: Arrays
) -> tuple[participation.Cohort, Client]:
    """Draws a round's cohort and deals it to the devices, each client with its key.

    Args:
        sim: static parts.
        seed: of the run.
        index: of the round.
        arrays: the federation.
    """
    key_cohort, key_local = keys.of_round(seed, index)
    cohort = participation.draw(key_cohort, sim.method.participation, sim.federation.num_clients)
    cohort = _deal(sim, cohort, arrays)
    own = jax.vmap(lambda c: jax.random.fold_in(key_local, c))(cohort.client)  # over the cohort
    return cohort, Client(cohort.client, cohort.reports, own, None)


def _info(
    sim: Simulator,
    state: State,
    arrays: Arrays,
    cohort: participation.Cohort,
    heard: tuple[Bool[Array, "cohort"], Float[Array, "cohort"]],
) -> RoundInfo:
    reported, loss = heard
    sessions = arrays.bags.first[cohort.client + 1] - arrays.bags.first[cohort.client]
    # Invited, reported and lost clients, sessions sent and received: one sum to compile.
    told = [cohort.invited, reported, cohort.reports & ~reported]
    told += [jnp.where(who, sessions, 0) for who in told[:2]]
    invited, count, lost, down, up = jnp.sum(jnp.stack(told).astype(jnp.int32), axis=1)
    finite = operations.all_finite(x for level in state.levels for x in level.rows.values())
    return RoundInfo(
        loss=jnp.sum(jnp.where(reported, loss, 0.0)) / jnp.maximum(count, 1),
        invited=invited,
        reported=count,
        nonfinite=lost,
        sessions_down=down,
        sessions_up=up,
        healthy=(finite & ((count > 0) | (lost == 0)))[None],
        moved=jnp.zeros(len(state.levels), jnp.int32),
    )


def no_info(sim: Simulator) -> RoundInfo:
    """Facts of a round that has not been run."""
    none = jnp.zeros((), jnp.int32)
    return RoundInfo(
        loss=jnp.zeros(()),
        invited=none,
        reported=none,
        nonfinite=none,
        sessions_down=none,
        sessions_up=none,
        healthy=jnp.zeros(1 + len(sim.experts), bool),
        moved=jnp.zeros(len(sim.layout.levels), jnp.int32),
    )


def _deal(sim: Simulator, cohort: participation.Cohort, arrays: Arrays) -> participation.Cohort:
    """Pads the cohort to whole blocks on every device, and deals ragged work evenly, longest first."""
    devices = sim.mesh.shape["clients"]
    size = cohort.client.shape[0]
    padded = stretches.plan(sim.task, sim.block, -(-size // devices)).clients * devices

    def pad(x: Array) -> Array:
        return jnp.concatenate([x, jnp.zeros(padded - size, x.dtype)])

    cohort = participation.Cohort(*(pad(x) for x in cohort))
    windows = jnp.where(cohort.reports, client_windows(arrays, cohort.client), -1)
    order = jnp.argsort(-windows)
    place = order.reshape(-1, devices).T.reshape(-1)
    return participation.Cohort(*(x[place] for x in cohort))


def pooler(sim: Simulator) -> Callable[..., tuple[LevelState, ...]]:
    """Divides a round's sums among the levels: a function of (levels, sums, arrays, numbers, clock)."""

    def pool(
        states: tuple[LevelState, ...],
        totals: Totals,
        arrays: Arrays,
        numbers: pooling.Hyper,
        clock: tuple[Array, Array],
    ) -> tuple[LevelState, ...]:
        return pooling.pool(sim.layout, states, totals, _population(sim, arrays), numbers, clock)

    return pool


def _population(sim: Simulator, arrays: Arrays) -> Float[Array, ""]:
    """Weight of all clients together: each weighs as it does when it takes part."""
    clients = jnp.arange(sim.federation.num_clients)
    windows = client_windows(arrays, clients) if sim.task.mixed else arrays.train.count
    return jnp.sum(weigh(sim.method.pooling, windows))


def _absorb(layout: Layout, states: tuple[LevelState, ...], index: Int[Array, ""]) -> tuple[LevelState, ...]:
    """Moves rows up where a level's turn has come (HierFAVG's cloud step)."""
    new = list(states)
    for fine, level in reversed(list(enumerate(layout.levels))):  # what moves up may move on
        if not level.absorb:
            continue
        parent = pooling.parent_of(new[fine], new[fine - 1])
        moved = operations.absorb(new[fine], new[fine - 1], parent, reset=True)
        turn = (index + 1) % level.absorb == 0
        old = (new[fine], new[fine - 1])
        new[fine], new[fine - 1] = jax.tree.map(lambda a, b, turn=turn: jnp.where(turn, a, b), moved, old)
    return tuple(new)


def make_chunk(sim: Simulator, length: int) -> Callable[..., tuple[State, RoundInfo]]:
    """Up to `length` rounds in one loop on the device; compile with the state donated.

    Returns:
        A function of (state, arrays, hyper, count) to the state after `count` rounds, and their infos with a
        leading axis of `length`, of which `count` are filled. The count is traced, so that the last, shorter
        chunk of a run needs no compilation of its own.
    """
    round_fn = make_round(sim)

    def chunk(state: State, arrays: Arrays, numbers: Hyper, count: Int[Array, ""]) -> tuple[State, RoundInfo]:
        infos = jax.tree.map(lambda x: jnp.broadcast_to(x, (length, *x.shape)), no_info(sim))

        def body(index: Array, carry: tuple[State, RoundInfo]) -> tuple[State, RoundInfo]:
            state, infos = carry
            state, info = round_fn(state, arrays, numbers)
            return state, jax.tree.map(lambda all_, one: all_.at[index].set(one), infos, info)

        return jax.lax.fori_loop(0, count, body, (state, infos))

    return chunk
