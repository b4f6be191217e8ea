"""The learned groups as they are: how many, how large, how alike their updates, how true; and what they cost.

Labels of the data set serve here, for scores, and nowhere else.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from fedjax_vp import compiling
from fedjax_vp.federated import assignment, hierarchy, participation
from fedjax_vp.federated import learned as learned_of
from fedjax_vp.federated import round as rounds_of
from fedjax_vp.federated.grouping import cluster, scores
from fedjax_vp.federated.grouping.settings import IFCA, ByUpdates, FromData, Known
from fedjax_vp.federated.learned import OnHost
from fedjax_vp.federated.levels import LevelState
from fedjax_vp.federated.placement import first_clients
from fedjax_vp.federated.settings import Level
from fedjax_vp.federated.simulator import Simulator

PLANTED = ("video_category", "user_category")  # labels that together are the groups of a planted federation
_ALIKE = ("within", "between", "silhouette")
_MOST_REPEATS, _REPEAT_S = 3, 1.0  # of what is timed


def take(sim: Simulator, states: tuple[LevelState, ...]) -> list[dict[str, Any]]:
    """Describes every level whose groups are learned, or were found in the data before training.

    Args:
        sim: static parts, with the labels.
        states: the levels, after training or placement.

    Returns:
        By level: its name (`level`); `groups`, the rows used by units that have taken part (the row used
        most, where a unit uses several); their `sizes` in units, largest first (in training sessions, where
        groups were found in the data); `within`, `between` and `silhouette` of the similarity of updates,
        where groups follow from updates; `ari` and `nmi` over training sessions, where the true groups are
        known. What is not known is None.
    """
    train = np.asarray(sim.federation.arrays.train.count) > 0
    found, learned = [], []
    for level, state, grouping in zip(sim.layout.levels, states, sim.groupings, strict=True):
        if isinstance(level.grouping, Known):
            continue
        alike: dict[str, Any] = dict.fromkeys(_ALIKE)
        if isinstance(level.grouping, FromData):
            of_session = np.where(train, grouping.code, -1)
            sizes = scores.sizes(of_session).tolist()
        else:
            known: OnHost = jax.device_get(state.learned._replace(tree=None))
            heard, group = known.seen > 0, np.asarray(learned_of.row_of(known))
            of_session = np.where(train & (known.unit >= 0) & heard[known.unit], group[known.unit], -1)
            sizes = scores.sizes(group[heard]).tolist()
            alike = _similarity(known) if isinstance(level.grouping, ByUpdates) else alike
        learned.append(of_session)
        # What levels add up to is the groups of all of them: a coarser one may have found part of the truth.
        part = of_session if level.name in sim.federation.labels else _joint(learned)
        facts = {"level": level.name, "groups": len(sizes), "sizes": sizes, **alike}
        found.append(facts | _agreement(part, truth(sim.federation.labels, level)))
    return found


def _joint(codes: Sequence[np.ndarray]) -> np.ndarray:
    """Sessions that all codes put together, int [session]; -1 where one does not know."""
    known = np.all([code >= 0 for code in codes], axis=0)
    pairs = np.stack([code[known] for code in codes], axis=1)
    joint = np.full(len(known), -1)
    joint[known] = np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1)
    return joint


def _similarity(known: OnHost) -> dict[str, float | None]:
    """Means over the parent groups that have a pair of units to compare."""
    group = np.argmax(known.share, axis=1)
    heard = known.seen > 0
    parts = [np.flatnonzero((known.within == parent) & heard) for parent in np.unique(known.within[heard])]
    each = [cluster.describe(known.signal[units], group[units]) for units in parts]
    return {name: _mean([getattr(one, name) for one in each]) for name in _ALIKE}


def _mean(values: list[float]) -> float | None:
    known = [value for value in values if math.isfinite(value)]
    return float(np.mean(known)) if known else None


def _agreement(group: np.ndarray, true: np.ndarray | None) -> dict[str, float | None]:
    found = None if true is None else scores.score(group, true)
    if found is None or not found.num_groups:
        return {"ari": None, "nmi": None}
    return {"ari": found.ari, "nmi": found.nmi}


def truth(labels: dict[str, np.ndarray], level: Level) -> Int[np.ndarray, "session"] | None:
    """The true groups that a level is to find: the label of the level's name within the groups of `by`.

    They lie within those of the level that it is learned within, too, where that is called like a label. A
    level that is not called like a label is held against all planted categories together.

    Returns:
        A code for each session, -1 where unknown; None where the data set does not tell.
    """
    names = (level.name,) if level.name in labels else PLANTED
    if any(name not in labels for name in names):
        return None
    above = "" if isinstance(level.grouping, Known) else level.grouping.within
    above = above if above in labels and above not in names else ""
    joint = "*".join(name for name in (level.by, above, *names) if name)
    known = np.stack([labels[name] >= 0 for name in joint.split("*")]).all(axis=0)
    return hierarchy.grouping(labels, joint).code if known.any() else None


def history(
    sim: Simulator, noted: Sequence[dict[str, Any]], moved: Sequence[Sequence[int]]
) -> list[dict[str, Any]]:
    """The groups on the way, by level and round, with `churn`: the share of units that changed groups.

    Args:
        sim: static parts.
        noted: what was found after some rounds, with `level` and `round`, and `moved` where groups follow
            from updates.
        moved: by round, units of each level that moved as it began, where groups follow from losses.

    Returns:
        `noted`, and an entry for every round of the levels whose groups may change in each.
    """
    found = {(one["level"], one["round"]): dict(one) for one in noted}
    train = np.asarray(sim.federation.arrays.train.count) > 0
    units = {}
    for index, (level, group) in enumerate(zip(sim.layout.levels, sim.groupings, strict=True)):
        if group.unit is not None:
            units[level.name] = max(len(np.unique(group.unit[train & (group.unit >= 0)])), 1)
            if group.under is not None:  # a unit for each group above that it has sessions in
                sizes = [sum(one.get("sizes", ())) for one in noted if one["level"] == level.name]
                units[level.name] = max(units[level.name], *sizes, 1)
        if isinstance(level.grouping, IFCA):
            for done, counts in enumerate(moved, 1):
                entry = found.setdefault((level.name, done), {"level": level.name, "round": done})
                entry["moved"] = counts[index]
    for entry in found.values():
        entry["churn"] = entry.pop("moved", 0) / units.get(entry["level"], 1)
    order = [level.name for level in sim.layout.levels]
    return sorted(found.values(), key=lambda one: (order.index(one["level"]), one["round"]))


def choice_s(sim: Simulator) -> float:
    """Seconds of a round in which units choose among rows, on as many clients as take part in one.

    The choice is part of the compiled round, so it is compiled once more by itself, and the best of a few
    calls counts. Zero where no level is grouped by losses.
    """
    if not any(isinstance(level.grouping, IFCA) for level in sim.layout.levels):
        return 0.0
    size = participation.cohort_size(sim.method.participation, sim.federation.num_clients)
    state = rounds_of.init(sim, jnp.int32(0))
    args = state.levels, sim.federation.arrays, first_clients(sim, state.seed, size), state.round
    options = compiling.options(sim.mesh)
    choose = jax.jit(lambda *args: assignment.assign(sim, *args), compiler_options=options)
    jax.block_until_ready(choose(*args))
    spent: list[float] = []
    while len(spent) < _MOST_REPEATS and sum(spent) < _REPEAT_S:
        begun = time.perf_counter()
        jax.block_until_ready(choose(*args))
        spent.append(time.perf_counter() - begun)
    return min(spent)
