"""Which groups newcomers are evaluated in: by their first windows, among rows that others train, or none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import grouped
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grouped import GROUP, SESSIONS, case, groups, one_level

from fedjax_vp.federated.grouping.settings import CFL, IFCA, FedGroup, Hierarchical, KMeans
from fedjax_vp.federated.placement import make_place
from fedjax_vp.federated.round import State
from fedjax_vp.federated.settings import Level
from fedjax_vp.federated.simulator import Simulator

NEW, MUTE = (2, 3, 7), (10,)  # never train; the first have adapt windows
KINDS = {
    "kmeans": KMeans(groups=2, warmup=2, sketch=16),
    "ifca": IFCA(groups=2, windows=0, warmup=2, hold=1),
    "kmeans by update": KMeans(groups=2, warmup=2, sketch=16, newcomers="update"),
    "l2 by update": Hierarchical(groups=2, warmup=2, sketch=16, newcomers="update", metric="l2"),
    "fedgroup": FedGroup(groups=2, warmup=2, sketch=16),
    "cfl": CFL(groups=2, warmup=2, every=2, sketch=0, relative=False, eps1=0.3, eps2=0.5),
}
KNOWN = {"noise": 0.06, "empty": NEW + MUTE, "early": NEW}


def trained(method: Any, rounds: int = 8, **kwargs: Any) -> tuple[Simulator, State]:
    one = case(method, **{**KNOWN, **kwargs})
    return one.sim, one.run(one.start(), rounds)[0]


_PLACES: dict[int, Any] = {}


def place(sim: Simulator, state: State) -> State:
    """Placement that may read training and adapt windows only."""
    if id(sim.task) not in _PLACES:
        arrays = sim.federation.arrays
        blind = replace(sim.federation, arrays=grouped.blinded(arrays, arrays.train, arrays.adapt))
        _PLACES[id(sim.task)] = make_place(sim._replace(task=sim.task._replace(federation=blind)))
    return jax.device_get(_PLACES[id(sim.task)](state))


@pytest.mark.parametrize("kind", list(KINDS))
def test_newcomers_join_their_group_by_their_first_windows(kind: str) -> None:
    sim, state = trained(one_level(KINDS[kind]))
    found = place(sim, state).levels[0].members
    old = [s for s in range(SESSIONS) if s not in NEW + MUTE]
    assert len(np.unique(groups(state)[old])) == 2
    for s in NEW:
        like = next(o for o in old if GROUP[o] == GROUP[s])
        assert found.group[s, 0] == found.group[like, 0]
        assert found.share[s, 0] == 1
    for s in old:
        assert found.group[s, 0] == groups(state)[s]
    # Without first windows, and without a level above: where most are.
    assert found.group[MUTE[0], 0] == np.bincount(groups(state)[old]).argmax()
    assert found.share[MUTE[0], 0] == 1


def test_below_another_level_an_unknown_unit_has_no_row() -> None:
    """Groups within videos. Video 2 is watched by newcomers only, so that it has no row to offer either."""
    video2 = tuple(range(2, SESSIONS, 3))
    cluster = Level("planted", by="video", grouping=KINDS["ifca"])
    method = replace(one_level(KINDS["ifca"]), levels=(Level("global"), cluster))
    sim, state = trained(method, empty=(*video2, 3, 10), early=(*video2, 3))
    found = place(sim, state).levels[1].members
    assert not found.share[[*video2, 10]].any()
    assert found.share[3, 0] == 1
    np.testing.assert_array_equal(found.group[:, 0] // 2, np.tile(np.arange(3), 4))
    assert found.group[3, 0] == found.group[9, 0]  # of the same group and video


@pytest.mark.parametrize("kind", ["kmeans", "ifca"])
def test_while_warming_up_everybody_is_evaluated_with_the_row_that_trains(kind: str) -> None:
    one = case(one_level(KINDS[kind]), **KNOWN)
    state = one.start()
    for _ in range(2 if kind == "ifca" else 1):  # IFCA's rows part as the next round begins
        state, _ = one.round(state, one.sim.federation.arrays, one.hyper)
    found = place(one.sim, state).levels[0].members
    assert not found.group.any()
    assert found.share.all()


def test_nobody_joins_a_row_that_no_unit_trains() -> None:
    """Row 1 would suit the newcomer best, but it is what it started with, by chance."""
    sim, state = trained(one_level(KINDS["kmeans"]), rounds=1)
    level = state.levels[0]
    newcomer = NEW[0]
    best = jnp.asarray(grouped.VELOCITY[GROUP[newcomer]] * np.arange(1, 4)[:, None], jnp.float32)
    rows = {"body": level.rows["body"].at[1].set(0.0), "head/bias": level.rows["head/bias"].at[1].set(best)}
    state = state._replace(levels=(level._replace(rows=rows),))
    assert place(sim, state).levels[0].members.group[newcomer, 0] == 0


def test_placement_leaves_the_training_state_alone() -> None:
    sim, state = trained(one_level(KINDS["ifca"]))
    before = jax.tree.map(np.asarray, state)
    placed = place(sim, state)
    grouped.assert_states(state, before, atol=0)
    assert int(placed.round) == int(state.round)
    grouped.assert_states(placed.levels[0].rows, state.levels[0].rows, atol=0)
