"""Learned groupings in the engine: units, what is known of them, and the rows that follow from it.

A unit (`grouping.of` within the level's `by`) is moved as one. Group a of the units in parent group w has row
w * groups + a. All of this is part of the state of a run, so that it is traced, checkpointed and vmapped.

Within the groups of another learned level (`grouping.within`) there is a unit for each of its rows: a user's
sessions in one category of videos are grouped apart from those in another, and follow them there (`follow`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from fedjax_vp.federated import keys, levels
from fedjax_vp.federated.grouping import split_tree
from fedjax_vp.federated.grouping.fedgroup import inter_group
from fedjax_vp.federated.grouping.settings import CFL, IFCA, ByUpdates, FedGroup
from fedjax_vp.federated.grouping.sketch import sketch
from fedjax_vp.federated.hierarchy import Grouping, Layout
from fedjax_vp.federated.levels import LevelState, Membership
from fedjax_vp.federated.settings import Level, is_soft, parent_level
from fedjax_vp.models.base import Params

KEPT = 256  # members whose updates a split of CFL keeps, at most


class Learned(NamedTuple):
    """What the server knows of a level's units."""

    unit: Int[Array, "session"]  # -1 where unknown
    within: Int[Array, "unit"]  # parent group of each unit
    share: Float[Array, "unit group"]  # of each group in the unit's model: one-hot unless soft
    seen: Float[Array, "unit"]  # weight of evidence; 0: never took part
    signal: Float[Array, "unit q"]  # losses of the candidates, or sketches of updates
    peak: Float[Array, ""]  # largest norm of a mean update so far (CFL)
    heard: Bool[Array, "session"]  # that have ever reported
    tree: Any = None  # splits so far, with the models and the members' updates (CFL)


OnHost = Any  # a Learned of NumPy arrays


class Seen(NamedTuple):
    """What the server is shown of the participants' updates."""

    session: Int[Array, "client slot"]
    weight: Float[Array, "client slot"]
    sketch: dict[str, Array]  # by level: [client, slot or 1, q]


def begin(
    layout: Layout, groupings: list[Grouping], init_fn: Callable[[Array], Params], seed: ArrayLike
) -> tuple[LevelState, ...]:
    """Rows of every level before the first round, with their units where groups are learned."""
    params = init_fn(keys.key_of(seed, keys.INIT))
    states = levels.init(layout, groupings, params)
    for index, (level, group) in enumerate(zip(layout.levels, groupings, strict=True)):
        settings = settings_of(level)
        if settings is None:
            continue
        known = init(level, group, params, layout.owned[index])
        state = states[index]._replace(learned=known, members=members(known, group.soft))
        states = (*states[:index], state, *states[index + 1 :])
        if isinstance(settings, IFCA) and not settings.warmup:
            rows = perturbed(layout, states, index, settings.spread, seed)
            if settings.start == "keys":
                rows |= _fresh(layout, state, index, init_fn, seed)
            states = (*states[:index], state._replace(rows=rows), *states[index + 1 :])
    return states


def _fresh(
    layout: Layout, state: LevelState, index: int, init_fn: Callable[[Array], Params], seed: ArrayLike
) -> Params:
    """The leaves a level is the first to own, from a key for each group."""
    groups = state.learned.share.shape[1]
    key = keys.key_of(seed, keys.FRESH)
    models = jax.vmap(lambda k: init_fn(jax.random.fold_in(key, k)))(jnp.arange(groups))  # over groups
    rows = {}
    for leaf, row in state.rows.items():
        if layout.coarsest(leaf) == index:
            rows[leaf] = jnp.tile(models[leaf], (row.shape[0] // groups, *(1,) * (row.ndim - 1)))
    return rows


def perturbed(
    layout: Layout, states: tuple[LevelState, ...], index: int, spread: float, seed: ArrayLike
) -> Params:
    """Copies of each parent group's first row, each moved by noise in proportion to the model's own size.

    A single row has nothing to be told from, and stays.

    Args:
        layout: static facts of the hierarchy.
        states: rows of every level.
        index: of the level.
        spread: standard deviation of the noise, as a share of the root mean square of the leaf.
        seed: of the run; each run has a start of its own.
    """
    groups = states[index].learned.share.shape[1]
    spread = spread if groups > 1 else 0.0
    rows, leaves = {}, sorted(states[index].rows.items())
    # One draw for all leaves compiles in a fraction of the time of one each.
    ends = list(itertools.accumulate(groups * row[0].size for _, row in leaves))
    random = jax.random.normal(keys.key_of(seed, keys.NOISE), (ends[-1],))
    for (start, end), (leaf, row) in zip(itertools.pairwise([0, *ends]), leaves, strict=True):
        first = row[::groups]
        copied = jnp.repeat(first, groups, axis=0)
        owner = states[layout.coarsest(leaf)].rows[leaf][0]
        size = jnp.sqrt(jnp.mean(owner**2))
        noise = random[start:end].reshape(groups, *row.shape[1:])
        rows[leaf] = copied + spread * size * jnp.tile(noise, (first.shape[0], *(1,) * (row.ndim - 1)))
    return rows


def init(level: Level, grouping: Grouping, params: Params, names: tuple[str, ...]) -> Learned:
    """Every unit in group 0 of its parent group, and nothing known."""
    assert grouping.unit is not None
    settings = level.grouping
    assert isinstance(settings, IFCA | ByUpdates)
    branches = grouping.branches
    bases = int(grouping.unit.max()) // branches + 1
    base = np.where(grouping.unit < 0, bases, grouping.unit // branches)  # unknown: beyond the end, dropped
    by = jnp.zeros(bases, jnp.int32).at[base].max(jnp.maximum(grouping.code, 0) // branches, mode="drop")
    within = (by[:, None] * branches + jnp.arange(branches, dtype=jnp.int32)[None, :]).reshape(-1)
    units = bases * branches
    size = settings.groups
    if isinstance(settings, ByUpdates):
        size = settings.sketch or sum(params[n].size for n in names)
    tree = None
    if isinstance(settings, CFL):
        shapes = {n: params[n].shape for n in names}
        splits = max(grouping.num_groups - grouping.num_groups // settings.groups, 1)
        tree = split_tree.empty(splits, min(units, KEPT), size, shapes)
    return Learned(
        unit=jnp.asarray(grouping.unit),
        within=within,
        share=jnp.zeros((units, settings.groups)).at[:, 0].set(1.0),
        seen=jnp.zeros(units),
        signal=jnp.zeros((units, size)),
        peak=jnp.zeros(()),
        heard=jnp.zeros(len(grouping.unit), bool),
        tree=jax.tree.map(jnp.asarray, tree),
    )


def under(levels: tuple[Level, ...], index: int) -> int | None:
    """Index of the level, learned while training, within whose groups a level's own are learned, if any."""
    above = parent_level(levels, index)
    return None if above is None or settings_of(levels[above]) is None else above


def follow(levels: tuple[Level, ...], states: tuple[LevelState, ...], index: int) -> tuple[LevelState, ...]:
    """The states, where a level's units lie under the rows that their sessions use now in the level above.

    A unit not known there yet begins in the group of the one that its sessions come from, and is to be
    heard; one that all who have ever reported left is forgotten.
    """
    above = under(levels, index)
    if above is None:
        return states
    state, parent = states[index], states[above].members
    old, units, branches = state.learned, state.learned.seen.shape[0], states[above].mass.shape[0]
    known = (old.unit >= 0) & (parent.share[:, 0] > 0)
    unit = jnp.where(known, old.unit // branches * branches + parent.group[:, 0], -1)
    target = jnp.where(known & (old.seen[unit] == 0), unit, units)  # beyond the end: dropped
    source = jnp.full(units, -1).at[target].max(old.unit, mode="drop")
    share = jnp.where((source >= 0)[:, None], old.share[source], old.share)
    live = jnp.zeros(units, bool).at[jnp.where(known & old.heard, unit, units)].set(True, mode="drop")
    learned = old._replace(unit=unit, seen=jnp.where(live, old.seen, 0.0))
    moved = with_share(state, learned, share, is_soft(levels[index]))
    return (*states[:index], moved, *states[index + 1 :])


def members(learned: Learned, soft: bool) -> Membership:
    """Rows of every session: one, or all of its parent group where memberships are soft."""
    groups = learned.share.shape[1]
    unit = jnp.maximum(learned.unit, 0)
    known = (learned.unit >= 0).astype(jnp.float32)[:, None]
    first = learned.within[unit][:, None] * groups
    if soft:
        return Membership(first + jnp.arange(groups)[None, :], known * learned.share[unit])
    group = jnp.argmax(learned.share, axis=1).astype(jnp.int32)
    return Membership(first + group[unit][:, None], known)


def row_of(learned: Learned) -> Int[Array, "unit"]:
    """The row of each unit's (main) group."""
    groups = learned.share.shape[1]
    return learned.within * groups + jnp.argmax(learned.share, axis=1).astype(jnp.int32)


def observe(
    learned: Learned,
    session: Int[Array, "report"],
    weight: Float[Array, "report"],
    value: Float[Array, "report q"],
    memory: Float[ArrayLike, ""],
) -> tuple[Learned, Bool[Array, "unit"]]:
    """Adds reports to what is known of their units: weighted means, of which earlier ones keep a share.

    Args:
        learned: what was known.
        session: whose report it is; several sessions of a unit are averaged.
        weight: of each report; 0 leaves it out.
        value: losses or a sketch.
        memory: share of the earlier mean that a unit keeps.

    Returns:
        What is known now, and which units were heard of.
    """
    units = learned.seen.shape[0]
    unit = jnp.where(weight > 0, learned.unit[session], -1)
    unit = jnp.where(unit < 0, units, unit)  # beyond the end: dropped
    total = jnp.zeros(units).at[unit].add(weight, mode="drop")
    summed = jnp.zeros_like(learned.signal).at[unit].add(weight[:, None] * value, mode="drop")
    heard = total > 0
    mean = summed / jnp.where(heard, total, 1.0)[:, None]
    keep = jnp.where(learned.seen > 0, memory, 0.0)[:, None]
    signal = jnp.where(heard[:, None], keep * learned.signal + (1 - keep) * mean, learned.signal)
    told = learned.heard.at[session].max(weight > 0)
    return learned._replace(signal=signal, seen=learned.seen + total, heard=told), heard


def observe_updates(
    layout: Layout, before: tuple[LevelState, ...], after: tuple[LevelState, ...], seen: Seen
) -> tuple[LevelState, ...]:
    """Adds a round's sketches to what is known of the units of levels that group by updates.

    An update counts from the middle of the rows that its parent group uses, so that those of units in
    different groups can be compared; CFL compares within a group only, and takes updates as they are.
    """
    states = list(after)
    for index, level in enumerate(layout.levels):
        settings = level.grouping
        if not isinstance(settings, ByUpdates):
            continue
        value = seen.sketch[level.name]
        slots = value.shape[1]
        weight = seen.weight if slots == seen.weight.shape[1] else seen.weight.sum(axis=1, keepdims=True)
        session, weight = seen.session[:, :slots].reshape(-1), weight.reshape(-1)
        value = value.reshape(-1, value.shape[-1])
        old = before[index]
        unit = old.learned.unit[session]
        weight = jnp.where(unit >= 0, weight, 0.0)
        row = row_of(old.learned)[jnp.maximum(unit, 0)]
        rows = old.mass.shape[0]
        summed = jnp.zeros((rows, value.shape[1])).at[row].add(weight[:, None] * value)
        total = jnp.zeros(rows).at[row].add(weight)
        norm = jnp.linalg.norm(summed / jnp.where(total > 0, total, 1.0)[:, None], axis=1)
        if not isinstance(settings, CFL):
            value = value + _from_middle(old, settings)[row]
        learned, _ = observe(old.learned, session, weight, value, settings.memory)
        learned = learned._replace(peak=jnp.maximum(learned.peak, jnp.max(norm)))
        states[index] = after[index]._replace(learned=learned)
    return tuple(states)


def _from_middle(state: LevelState, settings: ByUpdates) -> Float[Array, "row q"]:
    """Sketch of each row, from the mean of the rows of its parent group that units use.

    Rows nobody uses have stayed where they started. Counting them would move all units of the parent group
    alike, away from zero, and cosines would tell of that start and of little else.
    """
    place = sketch(state.rows, settings.sketch)
    part = place.reshape(-1, settings.groups, place.shape[1])
    used = jnp.zeros(place.shape[0]).at[row_of(state.learned)].set(1.0).reshape(-1, settings.groups, 1)
    middle = jnp.sum(used * part, axis=1, keepdims=True) / jnp.maximum(used.sum(axis=1, keepdims=True), 1.0)
    return (part - middle).reshape(place.shape)


def with_share(
    state: LevelState, learned: Learned, share: Float[Array, "unit group"], soft: bool = False
) -> LevelState:
    """The level after its units have moved."""
    learned = learned._replace(share=share)
    return state._replace(learned=learned, members=members(learned, soft))


def users(learned: Learned, rows: int) -> Float[Array, "row"]:
    """Units that use each row, of those that have taken part (shares of units where groups are soft)."""
    groups = learned.share.shape[1]
    share = learned.share * (learned.seen > 0).astype(jnp.float32)[:, None]
    return jax.ops.segment_sum(share, learned.within, rows // groups).reshape(rows)


def offered(learned: Learned, rows: int) -> Bool[Array, "unit group"]:
    """Groups of each unit's parent group that are in use; all of them where none is."""
    used = users(learned, rows).reshape(-1, learned.share.shape[1])[learned.within] > 0
    return used | ~jnp.any(used, axis=1, keepdims=True)


def attract(layout: Layout, states: tuple[LevelState, ...]) -> tuple[LevelState, ...]:
    """Lets the groups in use of one parent group move towards each other (FlexCFL), where settings ask."""
    moved = list(states)
    for index, level in enumerate(layout.levels):
        if not isinstance(level.grouping, FedGroup) or not level.grouping.pull:
            continue
        state, groups, rate = states[index], level.grouping.groups, level.grouping.pull
        used = users(state.learned, state.mass.shape[0]).reshape(-1, groups) > 0
        parts = {n: x.reshape(-1, groups, *x.shape[1:]) for n, x in state.rows.items()}
        near = jax.vmap(inter_group, (0, 0, None))(parts, used, jnp.float32(rate))  # over parents
        moved[index] = state._replace(rows={n: near[n].reshape(x.shape) for n, x in state.rows.items()})
    return tuple(moved)


def settings_of(level: Level) -> Any:
    """The level's learned grouping, None where its groups are known."""
    return level.grouping if isinstance(level.grouping, IFCA | ByUpdates) else None
