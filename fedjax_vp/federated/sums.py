"""Weighted sums over a round's participants: all that pooling sees of them.

For every level R_l[g] = sum_{i in g} w_i r_i and its weights, for crossed levels the table of shared weights
C_lj[g, h] = sum_{i in g and h} w_i, and the total sum of squares (`pooling` has the equations). Sums add up
over blocks, stretches and devices.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from fedjax_vp.federated.bundles import Bundle, stat_shape, table_of
from fedjax_vp.federated.hierarchy import Layout, block_shape
from fedjax_vp.federated.levels import LevelState, Membership
from fedjax_vp.models.base import Params

Shapes = Mapping[str, Array | jax.ShapeDtypeStruct]
"""Parameters of which only the shapes matter."""


class Unit(NamedTuple):
    """What clients report about one leaf; a unit is a client, or a session of one where the leaf varies."""

    delta: Array  # [unit, ...]
    halves: (
        Array  # [unit, ...] difference of the two halves of the local steps (empty without auto shrinkage)
    )
    weight: Array  # [unit, blocks or 1, ...] same rank as delta: weight times coverage
    session: Array  # int32 [unit]


class Sums(NamedTuple):
    """Weighted sums of one level over the participants; by leaf, and in pooling by bundle (`by_bundle`)."""

    update: Params  # R_l: [group, ...]
    weight: Params  # W_l: [group, block] by `table_of`
    square_weight: Params  # sum of w^2, like weight
    pair: dict[int, Params]  # C: [group, coarse group, block] by crossed coarser level and `table_of`


class Totals(NamedTuple):
    """Everything a round adds up over its participants; by leaf, and in pooling by bundle (`by_bundle`)."""

    levels: tuple[Sums, ...]
    square: Params  # SS per leaf, [1, ...]
    halves: Params  # sum of w times squared half differences, [1, ...]
    weight: Params  # [1, block] by `table_of`, like that of a level
    known: dict[int, Totals]  # the same of those alone whose group is known, by patchy level


def zeros(layout: Layout, params: Shapes) -> Totals:
    """Empty sums for a model of these leaves."""
    empty = _zeros(layout, params)
    return empty._replace(known=dict.fromkeys(sorted(layout.patchy), empty))


def _zeros(layout: Layout, params: Shapes) -> Totals:
    weight = {n: jnp.zeros(block_shape(n, p.shape)) for n, p in params.items()}
    stat = {n: stat_shape(n, p.shape) for n, p in params.items()}

    levels = []
    for fine, (names, count) in enumerate(zip(layout.owned, layout.num_groups, strict=True)):
        crossed = [j for j in range(fine) if layout.relation[fine, j] == "crossed"]
        pair = {
            j: {
                table_of(layout, n): jnp.zeros((count, layout.num_groups[j], weight[n].size))
                for n in names
                if n in layout.owned[j]
            }
            for j in crossed
        }
        sizes = {table_of(layout, n): jnp.zeros((count, weight[n].size)) for n in names}
        update = {n: jnp.zeros((count, *params[n].shape)) for n in names}
        levels.append(Sums(update, sizes, dict(sizes), pair))
    square = {n: jnp.zeros((1, *shape)) for n, shape in stat.items()}
    whole = {table_of(layout, n): jnp.zeros((1, w.size)) for n, w in weight.items()}
    return Totals(tuple(levels), square, dict(square), whole, {})


def add(totals: Totals, states: tuple[LevelState, ...], layout: Layout, units: dict[str, Unit]) -> Totals:
    """Adds some clients' reports to the sums."""
    levels = tuple(_add_level(index, sums, states, layout, units) for index, sums in enumerate(totals.levels))
    square, halves, weight = dict(totals.square), dict(totals.halves), dict(totals.weight)
    for leaf, unit in units.items():
        kept = stat_shape(leaf, unit.delta.shape[1:])
        axes = (0, *(1 + axis for axis, size in enumerate(kept) if size == 1))
        square[leaf] += jnp.sum(unit.weight * unit.delta**2, axis=axes, keepdims=True)
        if unit.halves.size:
            halves[leaf] += jnp.sum(unit.weight * unit.halves**2, axis=axes, keepdims=True)
    for table, unit in _by_table(layout, units).items():
        weight[table] += jnp.sum(_flat(unit.weight), axis=0, keepdims=True)
    known = {
        index: add(some, states, layout, _of_known(units, states[index].members))
        for index, some in totals.known.items()
    }
    return Totals(levels, square, halves, weight, known)


def _of_known(units: dict[str, Unit], members: Membership) -> dict[str, Unit]:
    """The same reports, those of unknown group without weight."""
    known = (jnp.max(members.share, axis=1) > 0).astype(jnp.float32)
    return {
        n: unit._replace(weight=unit.weight * _expand(known[unit.session], unit.weight.ndim))
        for n, unit in units.items()
    }


def by_bundle(layout: Layout, totals: Totals, bundles: dict[str, Bundle]) -> Totals:
    """The same by bundle: updates like rows, weights [group or 1, *weight_shape], squares like statistics."""
    table = {name: table_of(layout, name) for name in bundles}  # a bundle has the name of a leaf

    def weights(tables: Params, some: dict[str, Bundle]) -> Params:
        return {name: tables[table[name]].reshape(-1, *one.weight_shape) for name, one in some.items()}

    def level(index: int, one: Sums) -> Sums:
        mine = {name: bundle for name, bundle in bundles.items() if index in bundle.owners}
        return Sums(
            update={name: bundle.joined(one.update) for name, bundle in mine.items()},
            weight=weights(one.weight, mine),
            square_weight=weights(one.square_weight, mine),
            pair={
                coarse: {name: of[table[name]] for name in mine if table[name] in of}
                for coarse, of in one.pair.items()
            },
        )

    return Totals(
        levels=tuple(level(index, one) for index, one in enumerate(totals.levels)),
        square={name: bundle.joined(totals.square) for name, bundle in bundles.items()},
        halves={name: bundle.joined(totals.halves) for name, bundle in bundles.items()},
        weight=weights(totals.weight, bundles),
        known={index: by_bundle(layout, some, bundles) for index, some in totals.known.items()},
    )


def _add_level(
    index: int, sums: Sums, states: tuple[LevelState, ...], layout: Layout, units: dict[str, Unit]
) -> Sums:
    members = states[index].members
    update, weight, square = dict(sums.update), dict(sums.weight), dict(sums.square_weight)
    unit_of = _by_table(layout, {n: units[n] for n in update})
    for a in range(members.group.shape[1]):
        group = {t: members.group[unit.session, a] for t, unit in unit_of.items()}
        share = {t: members.share[unit.session, a] for t, unit in unit_of.items()}
        for leaf in update:
            unit, table = units[leaf], table_of(layout, leaf)
            w = unit.weight * _expand(share[table], unit.weight.ndim)
            update[leaf] = _scatter(update[leaf], group[table], w * unit.delta)
        for table, unit in unit_of.items():
            w = _flat(unit.weight) * share[table][:, None]
            weight[table] = _scatter(weight[table], group[table], w)
            square[table] = _scatter(square[table], group[table], w**2)
    pair = {
        j: {t: _add_pairs(c, members, states[j].members, unit_of[t]) for t, c in tables.items()}
        for j, tables in sums.pair.items()
    }
    return Sums(update, weight, square, pair)


def _add_pairs(table: Array, fine: Membership, coarse: Membership, unit: Unit) -> Array:
    weight = _flat(unit.weight)
    for a in range(fine.group.shape[1]):
        for b in range(coarse.group.shape[1]):
            both = fine.share[unit.session, a] * coarse.share[unit.session, b]
            at = table.at[fine.group[unit.session, a], coarse.group[unit.session, b]]
            table = at.add(weight * both[:, None])
    return table


def _by_table(layout: Layout, units: dict[str, Unit]) -> dict[str, Unit]:
    """A unit for each table of weights."""
    return {table_of(layout, n): unit for n, unit in units.items()}


def _flat(weight: Array) -> Array:
    return weight.reshape(weight.shape[0], -1)


def _scatter(total: Array, group: Array, value: Array) -> Array:
    """Adds [unit, ...] to rows [group, ...]; neither one row nor one unit needs a scatter."""
    if total.shape[0] == 1:
        return total + jnp.sum(value, axis=0, keepdims=True)
    if value.shape[0] == 1:
        row = jax.lax.dynamic_index_in_dim(total, group[0]) + value
        return jax.lax.dynamic_update_index_in_dim(total, row, group[0], 0)
    return total.at[group].add(value)


def _expand(x: Array, ndim: int) -> Array:
    return x.reshape(x.shape + (1,) * (ndim - x.ndim))
