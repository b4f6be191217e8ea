"""Pooling: dividing the clients' updates among the levels, coarse to fine.

    r_i    <- Delta_i
    m_l[g]  = sum_{i in g} w_i P_l r_i / sum_{i in g} w_i                 (no weight: 0)          (1)
    k_l[g]  = s_l[g] (m_l[g] + h_l delta_l[g]) - h_l delta_l[g]                                   (2)
    delta_l[g] <- delta_l[g] + eta_l opt_l(k_l[g])                                                (3)
    r_i    <- r_i - k_l[g_l(i)]                                                                   (4)

Shrinkage acts on what the server optimizer is shown, so that the rows rest where k = 0 whatever the optimizer
and its rate eta: at s times the group's own optimum where m = h (optimum - delta). With the term h delta left
out, or added after the optimizer, any rate but 1, any momentum and any Adam would rest elsewhere.

No update of a single client is kept. With R_l[g] = sum_{i in g} w_i r_i for every level, (4) is linear in the
sums:

    R_l[g] <- R_l[g] - sum_h C_lj[g, h] k_j[h],       C_lj[g, h] = sum_{i in g and h} w_i         (5)
    SS     <- SS - 2 <k_j, R_j> + sum_h W_j[h] k_j[h]^2      (of sum_i w_i r_i^2)                  (6)

C is the level's weights where one group covers all, a gather where groups nest, and a table only where they
cross: one for all leaves that clients train whole, another for each leaf that they train by blocks. (6) is
exact for hard memberships, and a bound from above for soft ones. Where some participants' group is unknown
(patchy levels) R, C and SS are kept once more for the others alone, who are all that variances may rest on.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fedjax_vp.federated import server, shrinkage
from fedjax_vp.federated.hierarchy import Layout
from fedjax_vp.federated.levels import LevelState
from fedjax_vp.federated.sums import Sums, Totals, by_leaf, table_of
from fedjax_vp.models.base import Params


class Hyper(NamedTuple):
    """Traced numbers of pooling: what a sweep varies without compiling again."""

    server_lr: Float[Array, "level"]
    shrinkage: Float[Array, "level"]  # ignored where the level says auto
    progress: Float[Array, "level"]


def pool(
    layout: Layout,
    states: tuple[LevelState, ...],
    totals: Totals,
    population: Params,
    hyper: Hyper,
    clock: tuple[Array, Array],
) -> tuple[LevelState, ...]:
    """Equations (1) to (6) for one round.

    Args:
        layout: static facts of the hierarchy.
        states: rows and optimiser states, coarse to fine.
        totals: sums over the participants.
        population: weights of all clients, participants or not, by leaf: [1, ...].
        hyper: learning rates, shrinkage and progress of each level.
        clock: index of this round, and number of rounds of the run.
    """
    totals = by_leaf(layout, totals)
    full, known = (
        _Rest(totals, [dict(s.update) for s in totals.levels], dict(totals.square)),
        {
            i: _Rest(some, [dict(s.update) for s in some.levels], dict(some.square))
            for i, some in totals.known.items()
        },
    )
    new_states = []
    for index, (level, state, sums) in enumerate(zip(layout.levels, states, totals.levels, strict=True)):
        denominator = {"group": sums.weight, "participants": totals.weight, "population": population}
        mean = {n: _divide(full.update[index][n], denominator[level.denominator][n]) for n in sums.update}
        decay = {n: hyper.progress[index] * state.rows[n] for n in mean}  # h delta
        variance, shrink = _shrink(index, layout, state, known.get(index, full), (mean, decay), hyper)
        step = {n: shrink[n] * (mean[n] + decay[n]) - decay[n] for n in mean}
        moved = _move(index, layout, state._replace(variance=variance), sums, step, hyper, clock)
        turn = jnp.asarray(level.period > 0) & ((clock[0] + 1) % max(level.period, 1) == 0)
        if level.period != 1:
            moved = jax.tree.map(lambda a, b, turn=turn: jnp.where(turn, a, b), moved, state)
        new_states.append(moved)
        took = {n: jnp.where(turn & (sums.weight[n] > 0), k, 0.0) for n, k in step.items()}
        full = _take(full, layout, states, index, took)
        known = {i: _take(some, layout, states, index, took) for i, some in known.items() if i > index}
    return tuple(new_states)


class _Rest(NamedTuple):
    """What the levels so far left of the updates of some participants."""

    totals: Totals
    update: list[Params]  # R_l by level
    square: Params  # SS


def _take(rest: _Rest, layout: Layout, states: tuple[LevelState, ...], index: int, took: Params) -> _Rest:
    """(4) by way of (5) and (6): what is left once a level took its share."""
    square, update = dict(rest.square), [dict(one) for one in rest.update]
    for n, k in took.items():
        spent = rest.totals.levels[index].weight[n] * k**2 - 2 * k * update[index][n]
        axes = tuple(1 + a for a in shrinkage.stat_axes(n, k.ndim - 1))
        square[n] = square[n] + jnp.sum(spent, axis=(0, *axes), keepdims=True)
        for fine in range(index + 1, len(states)):
            if n in update[fine]:
                shared = _shared(layout, rest.totals, states, (fine, index), n, k)
                update[fine][n] = update[fine][n] - shared
    return _Rest(rest.totals, update, square)


def _shrink(
    index: int,
    layout: Layout,
    state: LevelState,
    rest: _Rest,
    estimates: tuple[Params, Params],
    hyper: Hyper,
) -> tuple[shrinkage.Variance, Params]:
    """Shrinkage s of each leaf, broadcastable to its rows, and the averages it rests on.

    Args:
        index: of the level.
        layout: static facts of the hierarchy.
        state: of the level.
        rest: of the participants whose group is known.
        estimates: m and h delta.
        hyper: with the fixed shrinkage.
    """
    mean, decay = estimates
    totals, sums = rest.totals, rest.totals.levels[index]
    if layout.levels[index].shrinkage != "auto":
        return state.variance, {n: hyper.shrinkage[index].reshape((1,) * m.ndim) for n, m in mean.items()}
    seen = {}
    for n in mean:
        moments = shrinkage.Moments(
            z=mean[n] + decay[n],
            weight=sums.weight[n],
            square_weight=sums.square_weight[n],
            residual=rest.square[n],
            mean=mean[n],
            halves=_divide(totals.halves[n], shrinkage.total_of(n, totals.weight[n], mean[n].shape)),
            centered=layout.coarsest(n) < index,
        )
        seen[n] = shrinkage.observe(n, moments)
    anyone = jnp.stack([jnp.sum(totals.weight[n]) for n in mean]).sum() > 0
    variance = shrinkage.average(state.variance, seen)
    variance = jax.tree.map(lambda a, b: jnp.where(anyone, a, b), variance, state.variance)
    return variance, {n: shrinkage.factor(variance, n, sums.weight[n], sums.square_weight[n]) for n in mean}


def _move(
    index: int,
    layout: Layout,
    state: LevelState,
    sums: Sums,
    step: Params,
    hyper: Hyper,
    clock: tuple[Array, Array],
) -> LevelState:
    """Equation (3); rows without a participant keep value, moments and count."""
    settings = layout.levels[index].server
    update = jax.vmap(server.transformation(settings).update)  # over groups
    found, optimizer = update(step, state.optimizer, state.rows)
    direction = cast(Params, found)
    lr = hyper.server_lr[index] * server.factor(settings.schedule, *clock)
    active = {n: w > 0 for n, w in sums.weight.items()}
    rows = {n: jnp.where(active[n], row + lr * direction[n], row) for n, row in state.rows.items()}
    heaviest = {n: jnp.max(w.reshape(w.shape[0], -1), axis=1) for n, w in sums.weight.items()}
    weight = jnp.max(jnp.stack(list(heaviest.values())), axis=0)

    def keep(path: tuple, new: Array, old: Array) -> Array:
        names = [p.key for p in path if isinstance(p, jax.tree_util.DictKey)]
        mask = (weight > 0).reshape(-1, *(1,) * (new.ndim - 1))
        if names and names[-1] in active:
            mask = active[names[-1]]
        return jnp.where(mask, new, old)

    optimizer = jax.tree_util.tree_map_with_path(keep, optimizer, state.optimizer)
    blocks = {n: old + sums.weight[n] for n, old in state.block_mass.items()}
    return state._replace(rows=rows, optimizer=optimizer, mass=state.mass + weight, block_mass=blocks)


def _divide(total: Array, weight: Array) -> Array:
    return jnp.where(weight > 0, total / jnp.where(weight > 0, weight, 1.0), 0.0)


def _shared(
    layout: Layout,
    totals: Totals,
    states: tuple[LevelState, ...],
    pair: tuple[int, int],
    leaf: str,
    took: Array,
) -> Array:
    """sum_h C[g, h] k[h] of (5), by the way the two levels' groups lie."""
    fine, coarse = pair
    weight = totals.levels[fine].weight[leaf]
    relation = layout.relation[pair]
    if relation == "single":
        return weight * took[:1]
    if relation == "nested":
        return weight * took[parent_of(states[fine], states[coarse])]
    table = totals.levels[fine].pair[coarse][table_of(layout, leaf)]
    flat = jnp.einsum("ghb,hbr->gbr", table, took.reshape(took.shape[0], table.shape[2], -1))
    return flat.reshape(weight.shape[0], *took.shape[1:])


def parent_of(fine: LevelState, coarse: LevelState) -> Array:
    """Row of the coarser level above each row of a nested finer one: int32 [group]."""
    parent = jnp.zeros(fine.mass.shape[0], jnp.int32)
    known = fine.members.share > 0  # an unknown group is written as row 0, which it does not use
    return parent.at[fine.members.group].max(jnp.where(known, coarse.members.group[:, :1], 0))
