"""Grouping by updates, on the host between rounds: from the units' sketches to new groups and rows.

Clustering itself (SciPy, scikit-learn) is cheap next to a round and its sizes depend on data, so it runs
between compiled chunks, on [unit, q] sketches; what it changes, memberships and rows, is again traced state.
A new group's row starts as the mean of its members' rows (a copy, where a group was split).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_vp.federated import learned as learned_of
from fedjax_vp.federated import operations
from fedjax_vp.federated.grouping import cluster
from fedjax_vp.federated.grouping.settings import ByUpdates
from fedjax_vp.federated.levels import LevelState
from fedjax_vp.federated.round import State
from fedjax_vp.federated.settings import Level, Method


def due(method: Method, done: int) -> int | None:
    """The next round after `done` rounds at whose end some level groups its units anew."""
    found = [_next(level.grouping, done) for level in method.levels if isinstance(level.grouping, ByUpdates)]
    return min((turn for turn in found if turn is not None), default=None)


def _next(settings: ByUpdates, done: int) -> int | None:
    if done < settings.warmup:
        return settings.warmup
    if not settings.every:
        return None
    return settings.warmup + ((done - settings.warmup) // settings.every + 1) * settings.every


def regroup(method: Method, state: State, done: int) -> tuple[State, list[dict[str, Any]]]:
    """Groups the units anew at every level whose turn has come after `done` rounds.

    Returns:
        The state, and for each such level what was found: see `Found`, with `level` and `round`.
    """
    states, facts = list(state.levels), []
    for index, level in enumerate(method.levels):
        settings = level.grouping
        if not isinstance(settings, ByUpdates) or _next(settings, done - 1) != done:
            continue
        states[index], found = _regroup_level(level, settings, states[index])
        facts.append({"level": level.name, "round": done, **found})
    return state._replace(levels=tuple(states)), facts


def _regroup_level(level: Level, settings: ByUpdates, state: LevelState) -> tuple[LevelState, dict[str, Any]]:
    known = jax.device_get(state.learned)
    old = np.argmax(known.share, axis=1)
    new = old.copy()
    facts = []
    for parent in range(state.mass.shape[0] // settings.groups):
        member = np.flatnonzero((known.within == parent) & (known.seen > 0))
        evidence = cluster.Evidence(known.signal[member], known.seen[member], old[member], float(known.peak))
        found = cluster.find(settings, evidence)
        new[member] = found.group
        facts.append(found)
    groups = settings.groups
    # A unit that never reported follows the most popular group of those it was in with.
    row, was = known.within * groups + new, known.within * groups + old
    rows = state.mass.shape[0]
    heard = known.seen > 0
    table = np.zeros((rows, rows), np.float32)
    np.add.at(table, (row[heard], was[heard]), known.seen[heard])
    follow = np.where(table.sum(axis=0) > 0, table.argmax(axis=0), np.arange(rows))
    row = np.where(heard, row, follow[was])
    total = table.sum(axis=1, keepdims=True)
    source = np.where(total > 0, table / np.maximum(total, 1e-12), np.eye(rows, dtype=np.float32))
    share = jax.nn.one_hot(row - known.within * groups, groups)
    learned = state.learned._replace(share=share)
    group = learned_of.members(learned, soft=False).group
    state = operations.regroup(state, jnp.asarray(source), group)._replace(learned=learned)
    return state, cluster.merge(facts, moved=int(np.sum(row != was)))
