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
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_vp.checkpoint import Checkpoints
from fedjax_vp.federated import assignment, census, regrouping
from fedjax_vp.federated import learned as learned_of
from fedjax_vp.federated import round as rounds
from fedjax_vp.federated.grouping import split_tree
from fedjax_vp.federated.grouping.fedgroup import inter_group
from fedjax_vp.federated.grouping.scores import score
from fedjax_vp.federated.grouping.settings import CFL, IFCA, ByUpdates, FedGroup, Hierarchical, KMeans
from fedjax_vp.federated.levels import LevelState
from fedjax_vp.federated.round import State
from fedjax_vp.federated.settings import Everyone, Level, Method
from fedjax_vp.federated.simulator import simulator

SPLITS = CFL(groups=4, warmup=2, every=2, sketch=0, relative=False, eps1=0.05, eps2=0.5)
CLUSTERS = KMeans(groups=2, warmup=2, sketch=16, every=2)
PLANTED = one_level(CLUSTERS)


def test_levels_take_their_turns() -> None:
    levels = (
        Level("global"),
        Level("a", grouping=KMeans(warmup=3)),
        Level("b", grouping=CFL(warmup=2, every=4)),
        Level("c", grouping=IFCA(warmup=1, hold=2, every=5)),
        Level("d", grouping=IFCA(warmup=1)),
    )
    method = Method(levels=levels, participation=Everyone())
    turns, done = [], 0
    while done < 12 and (turn := regrouping.due(method, done)):
        turns.append(turn)
        done = turn
    assert turns == [2, 3, 6, 8, 10, 13]
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
    # Distances are 0 within groups, about 1 across.
    "threshold": Hierarchical(groups=2, warmup=2, sketch=16, threshold=0.5),
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


DRIFT = IFCA(groups=4, windows=0, hold=2, every=2, merge=0.5)


def test_models_that_serve_each_others_units_merge_until_the_groups_are_left() -> None:
    """FedDrift: four models held apart on random units become two, one a planted group."""
    one = case(one_level(DRIFT, steps=3), noise=0.06)
    state, facts = one.run(one.start(), 9)
    assert [fact["round"] for fact in facts] == [4, 6, 8]
    (found,) = census.take(one.sim, state.levels)
    assert (found["ari"], found["groups"]) == (1.0, 2)


def test_a_merged_row_is_its_parts_mean_and_free_rows_are_not_chosen() -> None:
    one = case(one_level(DRIFT, steps=3), noise=0.06)
    state, _ = one.run(one.start(), 3)
    level = state.levels[0]
    dealt = np.where(GROUP == 0, np.arange(SESSIONS) % 2, 2)  # group 0 in rows 0 and 1, group 1 in row 2
    losses = np.where(GROUP[:, None] == 0, [[0.1, 0.2, 9.0, 0.0]], [[9.0, 9.0, 0.1, 0.0]])
    learned = level.learned._replace(signal=jnp.asarray(losses), seen=jnp.ones(SESSIONS))
    level = learned_of.with_share(level, learned, jnp.eye(4)[dealt])
    state, _ = regrouping.regroup(one.sim.method, state._replace(levels=(level,)), 4)
    assert groups(state).tolist() == np.where(GROUP == 0, 0, 2).tolist()
    parts = np.bincount(dealt, minlength=4)[:2]
    for n, x in level.rows.items():
        wanted = (parts[0] * x[0] + parts[1] * x[1]) / parts.sum()
        np.testing.assert_allclose(state.levels[0].rows[n][0], wanted, rtol=1e-5)
    # Row 3, which no unit uses, would suit the second group best.
    best = {n: x.at[3].set(x[2]) for n, x in state.levels[0].rows.items()}
    worse = {n: x.at[2].add(0.3) for n, x in best.items()}
    state = state._replace(levels=(state.levels[0]._replace(rows=worse),), round=jnp.int32(6))
    after, _ = one.round(state, one.sim.federation.arrays, one.hyper)
    assert 3 not in groups(after)


@pytest.mark.parametrize(("isolate", "opens"), [(100.0, False), (0.2, True)])
def test_a_unit_opens_a_row_of_its_own_only_once_its_loss_has_risen(isolate: float, opens: bool) -> None:
    method = one_level(replace(DRIFT, isolate=isolate), steps=3)
    sim = case(method, noise=0.06).sim
    before = case(one_level(DRIFT, steps=3), noise=0.06).start().levels[0].learned
    before = before._replace(seen=jnp.ones(SESSIONS), signal=jnp.full((SESSIONS, 4), 0.5))
    now = before._replace(signal=before.signal.at[3].set(0.8))
    offered = learned_of.offered(before, 4)
    grouping = sim.method.levels[0].grouping
    assert isinstance(grouping, IFCA)
    found = assignment._isolated(grouping, before, now, offered)
    assert found.tolist() == [opens and s == 3 for s in range(SESSIONS)]


def test_flexcfl_moves_units_to_the_group_that_their_updates_resemble() -> None:
    one = case(one_level(FedGroup(groups=2, warmup=2, every=2, sketch=16, migrate=True)))
    state, _ = one.run(one.start(), 3)
    right = groups(state)
    level = state.levels[0]
    strayed = learned_of.with_share(
        level, level.learned, level.learned.share.at[0].set(jnp.eye(2)[1 - right[0]])
    )
    state, (facts,) = regrouping.regroup(one.sim.method, state._replace(levels=(strayed,)), 4)
    assert facts["moved"] == 1
    assert groups(state).tolist() == right.tolist()


def test_groups_in_use_move_towards_each_other() -> None:
    """FlexCFL's inter-group step, within each video alone; a row nobody uses stays."""
    attracted = FedGroup(groups=3, warmup=1, sketch=16, pull=0.1)
    stack = (Level("global"), Level("planted", by="video", grouping=attracted))
    method = Method(levels=stack, participation=Everyone(), local=probe.local())
    sim = case(method).sim
    state = case(method).start()
    level = state.levels[1]
    rows = {
        n: jnp.asarray(np.random.default_rng(1).normal(size=x.shape), jnp.float32)
        for n, x in level.rows.items()
    }
    units = level.learned.seen.shape[0]
    learned = level.learned._replace(seen=jnp.ones(units))
    share = jnp.eye(3)[np.arange(units) // 3 % 2]  # of each video's units some in row 0, some in 1, none in 2
    level = learned_of.with_share(level._replace(rows=rows), learned, share)
    after = learned_of.attract(sim.layout, (state.levels[0], level))[1]
    used = np.asarray(learned_of.users(level.learned, 9)).reshape(3, 3) > 0
    for video in range(3):
        mine = {n: x[3 * video : 3 * video + 3] for n, x in rows.items()}
        wanted = inter_group(mine, jnp.asarray(used[video]), jnp.float32(0.1))
        for n in rows:
            np.testing.assert_allclose(
                after.rows[n][3 * video : 3 * video + 3], wanted[n], rtol=1e-4, atol=1e-6
            )
            np.testing.assert_array_equal(after.rows[n][3 * video + 2], rows[n][3 * video + 2])


ANY: dict[str, ByUpdates | IFCA] = {
    "kmeans": KMeans(groups=3, sketch=16),
    "kmeans, as they are": KMeans(groups=3, sketch=16, metric="euclidean"),
    "edc": FedGroup(groups=3, sketch=16),
    "madc": FedGroup(groups=3, sketch=16, measure="madc"),
    "migrate": FedGroup(groups=3, sketch=16, warmup=1, migrate=True),
    "hierarchical": Hierarchical(groups=3, sketch=16),
    "hierarchical, open": Hierarchical(groups=3, sketch=16, threshold=0.1),
    "cfl": CFL(groups=3, sketch=16, warmup=1, relative=False, eps1=9.0, eps2=0.1),
    "feddrift": IFCA(groups=3, every=2, merge=0.5),
}
STARTS: dict[str, LevelState] = {}


def start_of(kind: str) -> LevelState:
    """A level within videos, below another one, before the first round."""
    if kind not in STARTS:
        stack = (Level("global"), Level("planted", by="video", grouping=ANY[kind]))
        method = Method(levels=stack, participation=Everyone(), local=probe.local())
        sim = simulator(grouped.federation(), probe.predictor(), method, probe.ONE)
        STARTS[kind] = rounds.init(sim, jnp.int32(0)).levels[1]
    return STARTS[kind]


@pytest.mark.parametrize("kind", list(ANY))
@settings(max_examples=15, deadline=None)
@given(
    heard=st.lists(st.booleans(), min_size=SESSIONS, max_size=SESSIONS),
    where=st.lists(st.integers(0, 2), min_size=SESSIONS, max_size=SESSIONS),
    seed=st.integers(0, 99),
)
def test_any_number_of_units_is_grouped_within_its_parent(
    kind: str, heard: list[bool], where: list[int], seed: int
) -> None:
    """None, one or all of a video's units have reported; every unit keeps its video, every row is finite."""
    level = start_of(kind)
    random = np.random.default_rng(seed)
    signal = jnp.asarray(random.standard_normal(level.learned.signal.shape), jnp.float32)
    seen = jnp.asarray(heard, jnp.float32) * jnp.asarray(random.integers(1, 9, SESSIONS), jnp.float32)
    rows = {n: jnp.asarray(random.standard_normal(x.shape), jnp.float32) for n, x in level.rows.items()}
    learned = level.learned._replace(signal=signal, seen=seen)
    level = learned_of.with_share(level._replace(rows=rows), learned, jnp.eye(3)[np.asarray(where)])
    found, _, facts = regrouping._regroup_level(ANY[kind], level, 4)
    share = np.asarray(found.learned.share)
    np.testing.assert_array_equal(np.sort(share, axis=1), np.tile([0.0, 0.0, 1.0], (SESSIONS, 1)))
    unit = np.asarray(found.learned.unit)
    row = np.asarray(found.learned.within) * 3 + share.argmax(axis=1)
    np.testing.assert_array_equal(found.members.group[:, 0], row[unit])
    assert 0 <= facts["moved"] <= sum(heard)
    assert all(np.isfinite(x).all() for x in found.rows.values())
    video = np.asarray(found.learned.within)
    for u in np.flatnonzero(heard):
        if np.sum(heard & (video == video[u])) == 1:  # nobody to be compared with
            assert share[u].argmax() == where[u]
