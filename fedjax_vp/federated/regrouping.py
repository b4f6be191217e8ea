"""Grouping on the host between rounds: from what is known of the units to new groups and rows.

Clustering itself (SciPy, scikit-learn) is cheap next to a round and its sizes depend on data, so it runs
between compiled chunks, on [unit, q] sketches or losses; what it changes, memberships and rows, is again
traced state. A new group's row starts as the mean of its members' rows (a copy, where a group was split).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_vp.federated import learned as learned_of
from fedjax_vp.federated import operations
from fedjax_vp.federated.grouping import cfl, cluster, drift
from fedjax_vp.federated.grouping.settings import CFL, IFCA, ByUpdates, FedGroup
from fedjax_vp.federated.learned import OnHost
from fedjax_vp.federated.levels import LevelState
from fedjax_vp.federated.round import State
from fedjax_vp.federated.settings import Level, Method


def due(method: Method, done: int) -> int | None:
    """The next round after `done` rounds at whose end some level groups its units anew."""
    found = [_next(level, done) for level in method.levels]
    return min((turn for turn in found if turn is not None), default=None)


def _next(level: Level, done: int) -> int | None:
    settings = level.grouping
    if isinstance(settings, IFCA) and settings.every:
        first = settings.warmup + settings.hold + settings.every
    elif isinstance(settings, ByUpdates):
        first = settings.warmup
    else:
        return None
    if done < first or not settings.every:
        return first if done < first else None
    return first + ((done - first) // settings.every + 1) * settings.every


def regroup(method: Method, state: State, done: int) -> tuple[State, list[dict[str, Any]]]:
    """Groups the units anew at every level whose turn has come after `done` rounds.

    Levels that are learned within the groups of another follow: a new row there takes theirs along.

    Returns:
        The state, and for each such level, by its name (`level`): the units that `moved`, and for CFL the
        `splits` made, and of each group judged `mean_norm`, `max_norm` and `alpha_cross_max`.
    """
    states, facts, sources = state.levels, [], {}
    for index, level in enumerate(method.levels):
        if (source := sources.get(learned_of.under(method.levels, index))) is not None:
            sources[index] = _under(source, states[index])
            moved = operations.regroup(
                states[index], jnp.asarray(sources[index]), states[index].members.group
            )
            states = (*states[:index], moved, *states[index + 1 :])
        states = learned_of.follow(method.levels, states, index)
        settings = level.grouping
        if not isinstance(settings, ByUpdates | IFCA) or _next(level, done - 1) != done:
            continue
        new, source, found = _regroup_level(settings, states[index], done)
        sources[index] = source @ sources[index] if index in sources else source
        states = (*states[:index], new, *states[index + 1 :])
        facts.append({"level": level.name, **found})
    return state._replace(levels=states), facts


def _under(source: np.ndarray, state: LevelState) -> np.ndarray:
    """The old row that each new one is, for rows learned within groups that have moved by `source`.

    What is group a here need not be group a there: rows are taken along from where most come from, not mixed.
    """
    groups = state.learned.share.shape[1]
    by = state.mass.shape[0] // (groups * len(source))
    main = np.eye(len(source), dtype=source.dtype)[source.argmax(axis=1)]
    return np.kron(np.eye(by, dtype=source.dtype), np.kron(main, np.eye(groups, dtype=source.dtype)))


def _regroup_level(
    settings: ByUpdates | IFCA, state: LevelState, done: int
) -> tuple[LevelState, np.ndarray, dict[str, Any]]:
    """The level with its units grouped anew, the shares of the old rows in each new one, and facts."""
    known: OnHost = jax.device_get(state.learned)
    was = np.argmax(known.share, axis=1)
    now, extra = was.copy(), {}
    parts = _parts(settings, state, known)
    if isinstance(settings, CFL):
        now, known, extra = _split(settings, state, known, parts, done)
    else:
        for member in parts:
            evidence = cluster.Evidence(known.signal[member], known.seen[member], was[member])
            if isinstance(settings, IFCA):
                now[member] = _merged(evidence, settings.merge)
            elif isinstance(settings, FedGroup) and settings.migrate and done > settings.warmup:
                now[member] = cluster.join(settings, evidence, evidence.update)
            else:
                now[member] = cluster.find(settings, evidence, done)
    row, source = _moves(settings, state, known, was, now)
    moved = (row != known.within * settings.groups + was) & (known.seen > 0)
    facts = {"moved": int(np.sum(moved)), **extra}
    share = jax.nn.one_hot(row - known.within * settings.groups, settings.groups)
    learned = state.learned._replace(share=share, tree=jax.tree.map(jnp.asarray, known.tree))
    group = learned_of.members(learned, soft=False).group
    return operations.regroup(state, jnp.asarray(source), group)._replace(learned=learned), source, facts


def _merged(evidence: cluster.Evidence, threshold: float) -> np.ndarray:
    """Groups of the units after those whose rows serve each other's units have become one."""
    used, code = np.unique(evidence.group, return_inverse=True)
    if len(used) < 2:
        return evidence.group
    member = (code[None, :] == np.arange(len(used))[:, None]) * evidence.weight
    losses = member @ evidence.update[:, used] / member.sum(axis=1, keepdims=True)
    label = drift.merge(losses, threshold)
    first = np.unique(label, return_index=True)[1]  # a merged group is called as the first of its parts
    return used[first[label]][code]


def _parts(settings: ByUpdates | IFCA, state: LevelState, known: OnHost) -> list[np.ndarray]:
    """Units of each parent group that have reported."""
    parents = state.mass.shape[0] // settings.groups
    return [np.flatnonzero((known.within == parent) & (known.seen > 0)) for parent in range(parents)]


def _split(
    settings: CFL, state: LevelState, known: OnHost, parts: list[np.ndarray], done: int
) -> tuple[np.ndarray, OnHost, dict[str, Any]]:
    """Judges every group, and divides those whose members disagree."""
    test = settings.eps1, settings.eps2, settings.gamma_max, settings.min_size, settings.linkage
    rule = cfl.SplitRule(*test, min_round=settings.warmup - 1)
    rule = rule.scaled(float(known.peak)) if settings.relative else rule
    models = {name: np.asarray(row) for name, row in state.rows.items()}
    row = known.within * settings.groups + np.argmax(known.share, axis=1)
    tree, verdicts, splits = known.tree, [], 0
    for parent, member in enumerate(parts):
        considered = np.full(len(row), -1, np.int32)
        considered[member] = row[member]
        mine = np.arange(parent * settings.groups, (parent + 1) * settings.groups)
        free = [one for one in mine.tolist() if not np.isin(one, row)]
        units = cfl.Members(considered, known.signal, known.seen)
        outcome = cfl.advance(tree, units, rule, done, free, models)
        row[member], tree = outcome.row[member], outcome.tree
        verdicts += outcome.verdicts.values()
        splits += len(outcome.copied)
    extra = {
        "splits": splits,
        "mean_norm": [one.mean_norm for one in verdicts],
        "max_norm": [one.max_norm for one in verdicts],
        "alpha_cross_max": [one.alpha_cross_max for one in verdicts],
    }
    return row - known.within * settings.groups, known._replace(tree=tree), extra


def _moves(
    settings: ByUpdates | IFCA, state: LevelState, known: OnHost, was: np.ndarray, now: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Every unit's row from now on, and the shares of the old rows in each new one.

    A unit that never reported follows most of those it was in one group with.
    """
    rows = state.mass.shape[0]
    before, row = known.within * settings.groups + was, known.within * settings.groups + now
    heard = known.seen > 0
    table = np.zeros((rows, rows), np.float32)
    np.add.at(table, (row[heard], before[heard]), known.seen[heard])
    follow = np.where(table.sum(axis=0) > 0, table.argmax(axis=0), np.arange(rows))
    row = np.where(heard, row, follow[before])
    total = table.sum(axis=1, keepdims=True)
    source = np.where(total > 0, table / np.maximum(total, 1e-12), np.eye(rows, dtype=np.float32))
    return row, source
