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
cross. (6) is exact for hard memberships, and a bound from above for soft ones. Where some participants' group
is unknown (patchy levels) R, C and SS are kept once more for the others alone, who are all that variances may
rest on. Leaves that are pooled alike are pooled as one (`bundles`).
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fedjax_vp.federated import server, shrinkage
from fedjax_vp.federated.bundles import Bundle, bundled
from fedjax_vp.federated.hierarchy import Layout
from fedjax_vp.federated.levels import LevelState
from fedjax_vp.federated.sums import Totals, by_bundle
from fedjax_vp.models.base import Params


class Hyper(NamedTuple):
    """Traced numbers of pooling: what a sweep varies without compiling again."""

    server_lr: Float[Array, "level"]
    shrinkage: Float[Array, "level"]  # ignored where the level says auto
    progress: Float[Array, "level"]


class _Pooling(NamedTuple):
    """What does not change from level to level."""

    layout: Layout
    bundles: dict[str, Bundle]
    states: tuple[LevelState, ...]
    hyper: Hyper
    clock: tuple[Array, Array]

    def of(self, index: int) -> dict[str, Bundle]:
        """Bundles that a level owns."""
        return {name: bundle for name, bundle in self.bundles.items() if index in bundle.owners}


class _Rest(NamedTuple):
    """What the levels so far left of the updates of some participants."""

    totals: Totals  # by bundle
    update: tuple[Params, ...]  # R_l by level
    square: Params  # SS


def pool(
    layout: Layout,
    states: tuple[LevelState, ...],
    totals: Totals,
    population: Float[Array, ""],
    hyper: Hyper,
    clock: tuple[Array, Array],
) -> tuple[LevelState, ...]:
    """Equations (1) to (6) for one round.

    Args:
        layout: static facts of the hierarchy.
        states: rows and optimiser states, coarse to fine.
        totals: sums over the participants.
        population: weight of all clients, participants or not.
        hyper: learning rates, shrinkage and progress of each level.
        clock: index of this round, and number of rounds of the run.

    Returns:
        The levels after the round.
    """
    bundles = bundled(layout, {n: x.shape[1:] for state in states for n, x in state.rows.items()})
    work = _Pooling(layout, bundles, states, hyper, clock)
    totals = by_bundle(layout, totals, bundles)
    full, known = _rest(totals), {index: _rest(some) for index, some in totals.known.items()}
    new_states = []
    for index, (level, state, sums) in enumerate(zip(layout.levels, states, totals.levels, strict=True)):
        rows = {name: bundle.joined(state.rows) for name, bundle in work.of(index).items()}
        everyone = {"participants": totals.weight, "population": dict.fromkeys(rows, population)}
        below = {"group": sums.weight, **everyone}[level.denominator]
        mean = {n: _divide(full.update[index][n], below[n]) for n in rows}
        decay = {n: hyper.progress[index] * row for n, row in rows.items()}  # h delta
        variance, shrink = _shrink(work, index, known.get(index, full), mean, decay)
        step = {n: shrink[n] * (mean[n] + decay[n]) - decay[n] for n in mean}
        moved = _move(work, index, sums.weight, step)._replace(variance=variance)
        turn = jnp.asarray(level.period > 0) & ((clock[0] + 1) % max(level.period, 1) == 0)
        if level.period != 1:
            moved = jax.tree.map(lambda a, b, turn=turn: jnp.where(turn, a, b), moved, state)
        new_states.append(moved)
        took = {n: jnp.where(turn & (sums.weight[n] > 0), k, 0.0) for n, k in step.items()}
        full = _take(work, full, index, took)
        known = {i: _take(work, some, index, took) for i, some in known.items() if i > index}
    return tuple(new_states)


def _rest(totals: Totals) -> _Rest:
    return _Rest(totals, tuple(sums.update for sums in totals.levels), totals.square)


def _take(work: _Pooling, rest: _Rest, index: int, took: Params) -> _Rest:
    """(4) by way of (5) and (6): what is left once a level took its share."""
    square, update = dict(rest.square), [dict(one) for one in rest.update]
    for n, k in took.items():
        spent = rest.totals.levels[index].weight[n] * k**2 - 2 * k * update[index][n]
        square[n] = square[n] + work.bundles[n].total(spent)
        for fine in range(index + 1, len(update)):
            if n in update[fine]:
                update[fine][n] = update[fine][n] - _shared(work, rest.totals, (fine, index), n, k)
    return _Rest(rest.totals, tuple(update), square)


def _shrink(
    work: _Pooling, index: int, rest: _Rest, mean: Params, decay: Params
) -> tuple[shrinkage.Variance, Params]:
    """Shrinkage s of each bundle, broadcastable to its rows, and the averages it rests on.

    Args:
        work: what does not change from level to level.
        index: of the level.
        rest: of the participants whose group is known.
        mean: m.
        decay: h delta.
    """
    totals, sums, old = rest.totals, rest.totals.levels[index], work.states[index].variance
    if work.layout.levels[index].shrinkage != "auto":
        return old, {n: work.hyper.shrinkage[index].reshape((1,) * m.ndim) for n, m in mean.items()}
    seen = {}
    for n, bundle in work.of(index).items():
        moments = shrinkage.Moments(
            z=mean[n] + decay[n],
            mean=mean[n],
            weight=sums.weight[n],
            square_weight=sums.square_weight[n],
            residual=rest.square[n],
            halves=_divide(totals.halves[n], bundle.total(totals.weight[n])),
            centered=bundle.owners[0] < index,
        )
        seen[n] = shrinkage.observe(bundle, moments)
    anyone = jnp.stack([jnp.sum(totals.weight[n]) for n in mean]).sum() > 0
    variance = shrinkage.average(old, seen)
    variance = jax.tree.map(lambda a, b: jnp.where(anyone, a, b), variance, old)
    factors = {n: shrinkage.factor(variance, n, sums.weight[n], sums.square_weight[n]) for n in mean}
    return variance, {n: work.bundles[n].spread(s) for n, s in factors.items()}


def _move(work: _Pooling, index: int, weight: Params, step: Params) -> LevelState:
    """Equation (3); rows without a participant keep value, moments and count."""
    settings, state, bundles = work.layout.levels[index].server, work.states[index], work.of(index)
    leaves = _by_leaf({n: bundles[n].leaves(k) for n, k in step.items()})
    weights = _by_leaf({n: bundles[n].by_leaf(w) for n, w in weight.items()})
    update = jax.vmap(server.transformation(settings).update)  # over groups
    found, optimizer = update(leaves, state.optimizer, state.rows)
    direction = cast(Params, found)
    lr = work.hyper.server_lr[index] * server.factor(settings.schedule, *work.clock)
    rows = {n: jnp.where(weights[n] > 0, row + lr * direction[n], row) for n, row in state.rows.items()}
    heaviest = [jnp.max(w.reshape(w.shape[0], -1), axis=1) for w in weight.values()]
    heaviest = jnp.max(jnp.stack(heaviest), axis=0)

    def keep(path: tuple, new: Array, old: Array) -> Array:
        names = [p.key for p in path if isinstance(p, jax.tree_util.DictKey)]
        mask = (heaviest > 0).reshape(-1, *(1,) * (new.ndim - 1))
        if names and names[-1] in weights:
            mask = weights[names[-1]] > 0
        return jnp.where(mask, new, old)

    optimizer = jax.tree_util.tree_map_with_path(keep, optimizer, state.optimizer)
    blocks = {n: old + weights[n] for n, old in state.block_mass.items()}
    return state._replace(rows=rows, optimizer=optimizer, mass=state.mass + heaviest, block_mass=blocks)


def _by_leaf(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {leaf: x for of_bundle in found.values() for leaf, x in of_bundle.items()}


def _divide(total: Array, weight: Array) -> Array:
    return jnp.where(weight > 0, total / jnp.where(weight > 0, weight, 1.0), 0.0)


def _shared(work: _Pooling, totals: Totals, pair: tuple[int, int], name: str, took: Array) -> Array:
    """sum_h C[g, h] k[h] of (5), by the way the two levels' groups lie."""
    fine, coarse = pair
    weight = totals.levels[fine].weight[name]
    relation = work.layout.relation[pair]
    if relation == "single":
        return weight * took[:1]
    if relation == "nested":
        return weight * took[parent_of(work.states[fine], work.states[coarse])]
    table = totals.levels[fine].pair[coarse][name]  # [group, coarse group, block]
    flat = jnp.einsum("ghb,hbr->gbr", table, took.reshape(took.shape[0], table.shape[2], -1))
    return flat.reshape(weight.shape[0], *took.shape[1:])


def parent_of(fine: LevelState, coarse: LevelState) -> Array:
    """Row of the coarser level above each row of a nested finer one: int32 [group]."""
    parent = jnp.zeros(fine.mass.shape[0], jnp.int32)
    known = fine.members.share > 0  # an unknown group is written as row 0, which it does not use
    return parent.at[fine.members.group].max(jnp.where(known, coarse.members.group[:, :1], 0))
