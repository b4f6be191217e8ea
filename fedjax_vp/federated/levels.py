"""Levels: a session's model is the sum of one row from each level.

    theta_i = sum_l sum_a c[i, l, a]  P_l  delta_l[ g_l[i, a] ]                                   (1)

`g` (Membership.group) says which rows session i uses at level l, `c` (Membership.share) how much of each, and
P_l which parameter leaves the level owns: its rows store only those. The coarsest owner of a leaf starts from
the model's init, finer rows from zero.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fedjax_vp.federated import shrinkage
from fedjax_vp.federated.bundles import bundled
from fedjax_vp.federated.hierarchy import BLOCK_AXES, Grouping, Layout, block_shape
from fedjax_vp.federated.server import transformation
from fedjax_vp.models.base import Params


class Membership(NamedTuple):
    """Rows that each session uses at a level; a share of 0 stands for "unknown group"."""

    group: Int[Array, "session a"]
    share: Float[Array, "session a"]


class LevelState(NamedTuple):
    """What the server keeps of a level; rows, optimizer and masses have a leading group axis."""

    rows: Params
    optimizer: Any
    variance: shrinkage.Variance
    mass: Float[Array, "group"]  # weight pooled since the rows were last absorbed
    block_mass: Params  # the same by block, of leaves trained by blocks: [group, blocks, 1, ...]
    members: Membership
    learned: Any = None  # units and what is known of them, where groups are learned (`learned.Learned`)


def init(layout: Layout, groupings: list[Grouping], params: Params) -> tuple[LevelState, ...]:
    """Rows of every level: the model's init at a leaf's coarsest owner, zeros below it."""
    states = []
    bundles = bundled(layout, {n: jnp.shape(p) for n, p in params.items()})
    for index, (level, group, names) in enumerate(zip(layout.levels, groupings, layout.owned, strict=True)):
        rows = {
            n: jnp.broadcast_to(
                params[n] if layout.coarsest(n) == index else 0.0, (group.num_groups, *params[n].shape)
            )
            for n in names
        }
        rows = {n: jnp.array(x, jnp.float32) for n, x in rows.items()}
        code = jnp.asarray(group.code)[:, None]
        states.append(
            LevelState(
                rows=rows,
                optimizer=jax.vmap(transformation(level.server).init)(rows),  # over groups
                variance=shrinkage.init(
                    {n: b for n, b in bundles.items() if index in b.owners and level.shrinkage == "auto"}
                ),
                mass=jnp.zeros(group.num_groups),
                block_mass={
                    n: jnp.zeros((group.num_groups, *block_shape(n, params[n].shape)))
                    for n in names
                    if BLOCK_AXES.get(n)
                },
                members=Membership(jnp.maximum(code, 0), (code >= 0).astype(jnp.float32)),
            )
        )
    return tuple(states)


def looked_up(states: tuple[LevelState, ...], session: Int[Array, "unit"]) -> list[Membership]:
    """Memberships of some sessions at every level, [unit, a]: looked up once for all leaves."""
    return [Membership(s.members.group[session], s.members.share[session]) for s in states]


def rows_of(state: LevelState, member: Membership, leaf: str) -> Array:
    """One level's term of (1) for a leaf: [unit, ...]."""
    rows, share = state.rows[leaf], member.share
    picked = rows[member.group]  # [unit, a, ...]
    return jnp.sum(share.reshape(share.shape + (1,) * (rows.ndim - 1)) * picked, axis=1)


def compose(
    states: tuple[LevelState, ...], session: Int[Array, "unit"], leaf: str, depth: int | None = None
) -> Array:
    """A leaf of (1) over the levels down to `depth` (all by default; zeros where none of them owns it)."""
    used = states if depth is None else states[:depth]
    if not any(leaf in s.rows for s in used):
        owner = next(s for s in states if leaf in s.rows)
        return jnp.zeros((session.shape[0], *owner.rows[leaf].shape[1:]))
    return prefixes(used, looked_up(used, session), leaf)[-1]


def prefixes(states: tuple[LevelState, ...], members: list[Membership], leaf: str) -> list[Array]:
    """`compose` down to every depth, coarse to fine, of sessions that are `looked_up`."""
    found: list[Array | None] = []
    for state, member in zip(states, members, strict=True):
        above = found[-1] if found else None
        term = rows_of(state, member, leaf) if leaf in state.rows else None
        found.append(term if above is None else above if term is None else above + term)
    known = next(x for x in found if x is not None)
    return [jnp.zeros_like(known) if x is None else x for x in found]


def model_of(states: tuple[LevelState, ...], session: Int[Array, ""], depth: int | None = None) -> Params:
    """Parameters of one session's model, of its prefix of `depth` levels where given."""
    return models_of(states, session)[-1 if depth is None else depth - 1]


def models_of(states: tuple[LevelState, ...], session: Int[Array, ""]) -> list[Params]:
    """Parameters of one session's model at every depth, coarse to fine; the last is the whole model."""
    leaves = sorted({n for s in states for n in s.rows})
    members = looked_up(states, session[None])
    found = {n: prefixes(states, members, n) for n in leaves}
    return [{n: found[n][depth][0] for n in leaves} for depth in range(len(states))]
