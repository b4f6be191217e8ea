"""Grouping by updates between rounds: planted groups are found, rows follow their members, runs resume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import grouped
import jax
import jax.numpy as jnp
import numpy as np
import probe
import pytest
from grouped import GROUP, SESSIONS, case, groups, one_level, row

from fedjax_vp.checkpoint import Checkpoints
from fedjax_vp.federated import census, regrouping
from fedjax_vp.federated.grouping import split_tree
from fedjax_vp.federated.grouping.scores import score
from fedjax_vp.federated.grouping.settings import CFL, ByUpdates, FedGroup, Hierarchical, KMeans
from fedjax_vp.federated.round import State
from fedjax_vp.federated.settings import Everyone, Level, Method

SPLITS = CFL(groups=4, warmup=2, every=2, sketch=0, relative=False, eps1=0.05, eps2=0.5)
CLUSTERS = KMeans(groups=2, warmup=2, sketch=16, every=2)
PLANTED = one_level(CLUSTERS)


def test_levels_take_their_turns() -> None:
    levels = (
        Level("global"),
        Level("a", grouping=KMeans(warmup=3)),
        Level("b", grouping=CFL(warmup=2, every=4)),
    )
    method = Method(levels=levels, participation=Everyone())
    turns, done = [], 0
    while done < 12 and (turn := regrouping.due(method, done)):
        turns.append(turn)
        done = turn
    assert turns == [2, 3, 6, 10, 14]
    assert regrouping.due(Method(levels=levels[:2]), 3) is None


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cfl_splits_two_opposite_groups_once(seed: int) -> None:
    """Without noise: updates of one group are alike (+1), of the two opposite (-1), and it ends with two."""
    one = case(one_level(SPLITS, steps=3))
    state, facts = one.run(one.start(seed), 12)
    np.testing.assert_array_equal(groups(state) != groups(state)[0], GROUP[0] != GROUP)
    (split,) = [fact for fact in facts if fact["splits"]]
    assert split["moved"] == 6
    assert split["alpha_cross_max"] == pytest.approx([-1.0], abs=0.01)
    assert split["mean_norm"][0] < 0.05
    tree = state.levels[0].learned.tree
    assert split_tree.Tree(*jax.device_get(tree)).count == 1
    assert int(tree.round[0]) == split["round"]
    assert sorted(np.asarray(tree.member[0])[: int(tree.size[0])].tolist()) == list(range(SESSIONS))
    (found,) = census.take(one.sim, state.levels)
    assert (found["ari"], found["groups"], found["sizes"]) == (1.0, 2, [6, 6])


def test_cfl_keeps_alike_clients_together() -> None:
    one = case(one_level(SPLITS, steps=3))
    alike = grouped.federation(group=np.zeros(SESSIONS, int), noise=0.4)
    state, facts = one.run(one.start(), 8, alike.arrays)
    assert not groups(state).any()
    assert sum(fact["splits"] for fact in facts) == 0


def test_the_two_halves_of_a_split_start_from_the_same_row() -> None:
    one = case(one_level(SPLITS, steps=3))
    state = one.start()
    while not groups(state).any():
        state, _ = one.run(state)
    old, new = sorted(np.unique(groups(state)))
    for leaf, value in row(state, old).items():
        np.testing.assert_array_equal(row(state, new)[leaf], value)
    kept = jax.device_get(state.levels[0].learned.tree.model)
    np.testing.assert_allclose(kept["body"][0], row(state, old)["body"], atol=1e-6)  # the model at the split


OTHERS = {
    "kmeans": CLUSTERS,
    "euclidean": replace(CLUSTERS, metric="euclidean"),
    "edc": FedGroup(groups=2, warmup=2, sketch=16),
    "madc": FedGroup(groups=2, warmup=2, sketch=16, measure="madc"),
    "cosine": Hierarchical(groups=2, warmup=2, sketch=16),
    "ward": Hierarchical(groups=2, warmup=2, sketch=16, metric="l2", linkage="ward"),
    "threshold": Hierarchical(groups=2, warmup=2, sketch=16, threshold=1.0),
}


def warm(one: grouped.Case, seed: int = 0) -> State:
    """After the warm-up's rounds, before units are grouped."""
    state = one.start(seed)
    for _ in range(2):
        state, _ = one.round(state, one.sim.federation.arrays, one.hyper)
    return state


@pytest.mark.parametrize("name", list(OTHERS))
def test_planted_groups_are_found_from_sketches(name: str) -> None:
    one = case(PLANTED, noise=0.06)
    state, (fact,) = regrouping.regroup(one_level(OTHERS[name]), warm(one), 2)
    assert score(groups(state), GROUP).ari == 1.0
    assert fact["moved"] == 6  # the larger share of each group keeps its name
    members = np.asarray(state.levels[0].members.group[:, 0])
    np.testing.assert_array_equal(members, groups(state))


def test_four_groups_within_videos() -> None:
    """Units of each video are grouped by themselves, in rows of its own."""
    level = {"by": "video", "denominator": "group"}
    one = case(one_level(KMeans(groups=2, warmup=2, sketch=0), **level), noise=0.06)
    state, _ = one.run(one.start(), 2)
    video = np.tile(np.arange(3), 4)
    rows = np.asarray(state.levels[0].members.group[:, 0])
    np.testing.assert_array_equal(rows // 2, video)
    for v in range(3):
        assert score(rows[video == v], GROUP[video == v]).ari == 1.0


def test_a_new_row_is_the_mean_of_its_members_rows_and_the_unheard_follow() -> None:
    """Rows 0, 1, 2 hold 0, 1, 2. Of row 0's units two thirds by weight move to row 1, and so does unit 4."""
    one = case(one_level(KMeans(groups=3, warmup=2, sketch=16)), noise=0.06)
    state = one.start()
    level = state.levels[0]
    was = np.array([0, 0, 0, 1, 0, 2, 2, 2, 2, 2, 2, 2])
    now = np.array([0, 1, 1, 1, 0, 2, 2, 2, 2, 2, 2, 2])
    seen = np.array([1.0, 1.0, 1.0, 1.0, 0.0] + [1.0] * 7)
    known = level.learned._replace(share=np.eye(3)[was], seen=seen, within=np.zeros(12, int))
    row_, source = regrouping._moves(one_level(CLUSTERS).levels[0].grouping, level, known, was, now)  # type: ignore[arg-type]
    assert row_.tolist()[:5] == [0, 1, 1, 1, 1]
    np.testing.assert_allclose(source, [[1, 0, 0], [2 / 3, 1 / 3, 0], [0, 0, 1]], atol=1e-6)


def test_a_row_without_members_stays() -> None:
    state = warm(case(PLANTED, noise=0.06))
    loose = Hierarchical(
        groups=2, warmup=2, sketch=16, threshold=3.0
    )  # beyond any cosine distance: one group
    after, _ = regrouping.regroup(one_level(loose), state, 2)
    assert not groups(after).any()
    np.testing.assert_allclose(row(after, 1)["body"], row(state, 1)["body"], atol=1e-6)


@pytest.mark.parametrize("settings", [SPLITS, CLUSTERS], ids=["cfl", "kmeans"])
def test_a_run_resumed_in_the_middle_is_the_plain_run(settings: ByUpdates, tmp_path: Path) -> None:
    noise = {} if settings is SPLITS else {"noise": 0.06}
    one = case(PLANTED if settings is CLUSTERS else one_level(settings, steps=3), **noise)
    half, _ = one.run(one.start(), 6)
    whole, _ = one.run(half, 6)
    keeper = Checkpoints(tmp_path)
    keeper.save(6, half, {})
    keeper.close()
    again = Checkpoints(tmp_path)
    found = again.latest(one.start())
    again.close()
    assert found
    grouped.assert_states(one.run(found[0], 6)[0], whole, atol=0)


def test_noise_does_not_move_who_is_grouped_well() -> None:
    one = case(PLANTED, noise=0.06)
    _, facts = one.run(one.start(), 8)
    assert [fact["moved"] for fact in facts] == [6, 0, 0, 0]


def test_a_unit_alone_and_nobody_at_all() -> None:
    """Nothing to compare, nothing moves."""
    one = case(one_level(SPLITS, steps=3))
    level = one.start().levels[0]
    for heard, sizes in ((1, [1]), (0, [])):
        known = level.learned._replace(seen=(jnp.arange(SESSIONS) < heard).astype(jnp.float32))
        state = one.start()._replace(levels=(level._replace(learned=known),))
        state, (fact,) = regrouping.regroup(one.sim.method, state, 2)
        assert not groups(state).any()
        assert (fact["splits"], fact["moved"]) == (0, 0)
        (found,) = census.take(one.sim, state.levels)
        assert (found["groups"], found["sizes"], found["within"]) == (len(sizes), sizes, None)
        np.testing.assert_array_equal(state.levels[0].rows["body"], level.rows["body"])


def test_probe_is_what_it_says() -> None:
    """The planted groups differ by their velocity, and by nothing else."""
    fed = grouped.federation()
    last, target, _ = grouped.windows(fed, 0)
    steps = target - last[:, None]
    np.testing.assert_allclose(
        steps, np.broadcast_to(grouped.VELOCITY[GROUP[0]] * np.arange(1, 4)[:, None], steps.shape), atol=1e-6
    )
    assert probe.predictor()
