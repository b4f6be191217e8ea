"""Pure operations on rows: absorb, regroup, rebase (for HierFAVG, CFL splits, merges, migration)."""

from __future__ import annotations

from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fedjax_vp.federated.levels import LevelState
from fedjax_vp.models.base import Params

_SMALL = 2**14  # numbers


def absorb(
    fine: LevelState, coarse: LevelState, parent_of: Int[Array, "group"], reset: bool = False
) -> tuple[LevelState, LevelState]:
    """Moves the weighted mean of a parent's rows up to the parent.

    Every session's model stays what it was, unless `reset` drops what is left of the rows: that is the cloud
    step of HierFAVG (Liu et al. 2020), after which every edge holds the cloud's model.

    Args:
        fine: the level that gives; its `mass` (`block_mass` of leaves that are trained by blocks) are the
            weights, and returns to zero.
        coarse: the level that takes; leaves it does not own stay where they are.
        parent_of: row of `coarse` above each row of `fine`.
        reset: whether the rows' rests are set to zero.
    """
    parents = coarse.mass.shape[0]

    def above(weight: Array) -> Array:
        return jax.ops.segment_sum(weight, parent_of, parents)

    up, down = dict(coarse.rows), dict(fine.rows)
    for leaf in set(up) & set(down):
        mass = fine.block_mass.get(leaf, fine.mass.reshape((-1,) + (1,) * (down[leaf].ndim - 1)))
        total = above(mass)[parent_of]
        keep = total > 0
        mean = above(jnp.where(keep, mass / jnp.where(keep, total, 1.0), 0.0) * down[leaf])
        up[leaf] = up[leaf] + mean
        rest = jnp.zeros_like(down[leaf]) if reset else down[leaf] - mean[parent_of]
        down[leaf] = jnp.where(keep, rest, down[leaf])
    blocks = {
        n: mass + above(fine.block_mass[n]) if n in down else mass for n, mass in coarse.block_mass.items()
    }
    coarse = coarse._replace(rows=up, mass=coarse.mass + above(fine.mass), block_mass=blocks)
    empty = jax.tree.map(jnp.zeros_like, fine.block_mass)
    return fine._replace(rows=down, mass=jnp.zeros_like(fine.mass), block_mass=empty), coarse


def regroup(
    state: LevelState, source: Float[Array, "group old"], group: Int[Array, "session a"]
) -> LevelState:
    """Copies or merges rows, with their optimiser state, at fixed capacity.

    Args:
        state: the level.
        source: weights of the old rows in each new row; rows sum to 1 (one-hot: a copy, several: a merge,
            all zero: an inactive row, which is set to zero).
        group: the sessions' rows from now on.
    """

    def mix(x: Array) -> Array:
        if jnp.issubdtype(x.dtype, jnp.floating):
            return jnp.tensordot(source, x, 1)
        return x[jnp.argmax(source, axis=1)]  # counters follow the main source

    moved = jax.tree.map(mix, (state.rows, state.optimizer))
    return state._replace(
        rows=moved[0],
        optimizer=moved[1],
        mass=source @ state.mass,
        block_mass={n: jnp.tensordot(source, x, 1) for n, x in state.block_mass.items()},
        members=state.members._replace(group=group),
    )


def rebase(
    fine: Params,
    coarse: Params,
    old_parent: Int[Array, "group"],
    new_parent: Int[Array, "group"],
    keep: str = "model",
) -> Params:
    """What happens to finer rows when the row above them changes.

    Args:
        fine: rows of the finer level.
        coarse: rows of the level above.
        old_parent: row above each finer row before the change.
        new_parent: the same after it.
        keep: `model` moves the difference of the parents into the finer row, so that the sum stays;
            `row` leaves the rows; `none` returns moved rows to zero.
    """
    moved: Bool[Array, group] = old_parent != new_parent
    rows = dict(fine)
    if keep == "row":
        return rows
    for leaf in set(fine) & set(coarse) if keep == "model" else set(fine):
        mask = moved.reshape((-1,) + (1,) * (fine[leaf].ndim - 1))
        new = 0.0 if keep == "none" else fine[leaf] + coarse[leaf][old_parent] - coarse[leaf][new_parent]
        rows[leaf] = jnp.where(mask, new, fine[leaf])
    return rows


def all_finite(arrays: Iterable[Array]) -> Bool[Array, ""]:
    """Whether every number is finite, and so are the arrays' squared norms (norms below 1.8e19).

    An array's product with itself is one call of a library; a test of every number and the reduction of the
    answers would be three functions to compile for each array. Small ones are laid side by side.
    """
    flat = [x.reshape(-1) for x in arrays]
    small = [x for x in flat if x.size < _SMALL]
    large = [x for x in flat if x.size >= _SMALL]
    squares = [jnp.vdot(x, x) for x in [*large, *([jnp.concatenate(small)] if small else [])]]
    return jnp.isfinite(jnp.stack(squares)).all()
