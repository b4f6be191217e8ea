"""Pooling against plain loops over clients and groups, for levels that nest, cross and own parts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_vp.federated import bundles, pooling, sums
from fedjax_vp.federated.server import Adaptive, Average, Optax
from fedjax_vp.federated.settings import Level

NO_TABLE = ("*", "!video_table")
HIERARCHIES = {
    "global": (Level("global", server=Average(lr=0.7)),),
    "nested": (
        Level("global"),
        Level("edge", by="edge", shrinkage=0.5, progress=0.6),
        Level("user", by="user", shrinkage=0.3),
        Level("session", by="session", shrinkage=0.2, owns=("head/*", "video_table")),
    ),
    "crossed": (
        Level("global", owns=NO_TABLE, server=Average(lr=0.5)),
        Level("video", by="video", shrinkage=0.6, progress=0.5),
        Level("user", by="user", shrinkage=0.4, owns=("head/*", "body")),
    ),
    "five": (
        Level("global"),
        Level("genre", by="genre", shrinkage=0.9),
        Level("video", by="video", shrinkage=0.8, owns=("video_table", "head/*")),
        Level("video_habit", by="video*habit", shrinkage=0.5, progress=0.7),
        Level("user", by="user", shrinkage=0.25, owns=("*", "!body")),
    ),
}


@pytest.fixture(scope="module")
def cases() -> dict[str, pools.Case]:
    return {name: pools.case(levels) for name, levels in HIERARCHIES.items()}


@pytest.mark.parametrize("name", HIERARCHIES)
@pytest.mark.parametrize("away", [(), (0, 1, 2, 7), (1, 4, 7, 10)], ids=["all", "no user 0", "no video 1"])
def test_pooling_is_the_loop_over_clients(
    cases: dict[str, pools.Case], name: str, away: tuple[int, ...]
) -> None:
    one, units = cases[name], pools.reports(3, away)
    pools.assert_rows(one.pool(one.states, units, one.hyper), pools.by_hand(one, units))


@pytest.mark.parametrize("shrinkage", [0.4, "auto"])
def test_leaves_apart_are_pooled_as_they_are_together(
    shrinkage: float | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = (Level("global"), Level("video", by="video", shrinkage=shrinkage), Level("user", by="user"))
    units, found = pools.reports(2), []
    for most in (bundles.COPIED, 0):
        monkeypatch.setattr(bundles, "COPIED", most)
        one = pools.case(levels)
        found.append(one.pool(one.states, units, one.hyper))
    assert len(bundles.bundled(one.layout, pools.SHAPES)) == len(pools.SHAPES)
    for together, apart in zip(*found, strict=True):
        for leaf, rows in together.rows.items():
            np.testing.assert_allclose(apart.rows[leaf], rows, atol=1e-6, rtol=1e-6)


def test_the_hierarchies_cover_every_relation(cases: dict[str, pools.Case]) -> None:
    assert cases["nested"].layout.relation == {
        (1, 0): "single", (2, 0): "single", (3, 0): "single",
        (2, 1): "nested", (3, 1): "nested", (3, 2): "nested",
    }  # fmt: skip
    five = cases["five"].layout.relation
    assert (five[2, 1], five[3, 2], five[4, 1]) == ("nested", "crossed", "crossed")  # a habit is unknown


def test_every_relation_is_a_special_case_of_crossed(cases: dict[str, pools.Case]) -> None:
    one, units = cases["nested"], pools.reports(4, (5,))
    other = pools.case(HIERARCHIES["nested"], crossed=True)
    for a, b in zip(
        one.pool(one.states, units, one.hyper), other.pool(one.states, units, one.hyper), strict=True
    ):
        for leaf in a.rows:
            np.testing.assert_allclose(a.rows[leaf], b.rows[leaf], atol=2e-5)


UNSEEN = {
    # (levels, labels beside the usual ones, which sessions train)
    "only the last user trains": (
        (Level("user", by="user", shrinkage=0.7), Level("video", by="video")),
        {"user": np.r_[np.full(9, 3), [0, 1, 2]]},
        np.arange(12) < 9,
    ),
    "only the last user trains, its videos are its own": (
        (Level("user", by="user", shrinkage=0.7), Level("video", by="video")),
        {"user": np.r_[np.full(9, 3), [0, 1, 2]], "video": np.r_[np.tile(np.arange(3), 3), [-1, -1, -1]]},
        np.arange(12) < 9,
    ),
    "tested users have no habit": (
        (Level("video", by="video", shrinkage=0.5), Level("pair", by="video*habit")),
        {"habit": np.array([0, 1, -1, -1])[pools.USER]},
        pools.USER < 2,
    ),
    "users are tested in other camps too": (
        (Level("camp", by="camp", shrinkage=0.5), Level("user", by="user")),
        {"camp": np.where(pools.VIDEO == 0, pools.USER % 2, 1 - pools.USER % 2)},
        pools.VIDEO == 0,
    ),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_sessions_that_only_test_do_not_disturb_what_training_learns(name: str) -> None:
    levels, labels, trains = UNSEEN[name]
    one = pools.case(levels, pools.LABELS | labels, trains)
    units = pools.reports(1, tuple(np.flatnonzero(~trains)))
    pools.assert_rows(one.pool(one.states, units, one.hyper), pools.by_hand(one, units))


def test_parents_of_nested_rows_come_from_sessions_that_know_both() -> None:
    levels, labels, trains = UNSEEN["tested users have no habit"]
    one = pools.case(levels, pools.LABELS | labels, trains)
    assert one.layout.relation[1, 0] == "nested"
    assert pooling.parent_of(one.states[1], one.states[0]).tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("denominator", ["participants", "population"])
def test_denominators(denominator: str) -> None:
    levels = (Level("global"), Level("user", by="user", denominator=denominator, shrinkage=0.5))
    one, units = pools.case(levels), pools.reports(6, (0, 1, 2))
    found = one.pool(one.states, units, one.hyper, population=123.0)
    pools.assert_rows(found, pools.by_hand(one, units, population=123.0))


def test_groups_without_participants_keep_rows_moments_and_counts() -> None:
    levels = (
        Level("global", server=Optax(name="adam", lr=0.1)),
        Level("user", by="user", server=Optax(name="adam", lr=0.1)),
        Level("video", by="video", server=Adaptive(kind="yogi")),
    )
    one = pools.case(levels)
    states = one.pool(one.states, pools.reports(0), one.hyper)
    after = one.pool(states, pools.reports(1, (3, 4, 5)), one.hyper)  # user 1 stays away
    moved = jax.tree.map(lambda a, b: np.asarray(a != b), states[1], after[1])
    assert not any(x[1].any() for x in jax.tree.leaves((moved.rows, moved.optimizer)))
    counts = [x for x in jax.tree.leaves(after[1].optimizer) if jnp.issubdtype(x.dtype, jnp.integer)]
    assert [c.tolist() for c in counts] == [[2, 1, 2, 2]]
    assert moved.rows["body"][[0, 2, 3]].all()


def test_bins_of_a_table_that_nobody_saw_keep_value_and_moments() -> None:
    one = pools.case((Level("global", server=Adaptive(lr=0.1)),))
    units = pools.reports(0)
    table = units["video_table"]
    units["video_table"] = table._replace(weight=table.weight.at[:, 2].set(0.0))
    after = one.pool(one.states, units, one.hyper)[0]
    moved = jax.tree.map(lambda a, b: np.asarray(a != b), one.states[0], after)
    for x in (moved.rows, moved.optimizer.m, moved.optimizer.v):
        assert x["video_table"][0].any(axis=1).tolist() == [True, True, False, True]


def test_a_round_without_participants_changes_nothing() -> None:
    levels = (Level("global"), Level("user", by="user", shrinkage="auto", server=Adaptive()))
    one = pools.case(levels)
    states = one.pool(one.states, pools.reports(0), one.hyper)
    after = one.pool(states, pools.reports(1, tuple(range(12))), one.hyper)
    for a, b in zip(jax.tree.leaves(states), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_level_pools_in_rounds_of_its_period() -> None:
    levels = (Level("global", period=3), Level("user", by="user"))
    one, units = pools.case(levels), pools.reports(0)
    for index in range(6):
        after = one.pool(one.states, units, one.hyper, round_index=index)
        due = index in (2, 5)
        assert bool((after[0].rows["body"] != one.states[0].rows["body"]).any()) == due
        assert float(after[0].mass.sum() > 0) == due
    resting = one._replace(states=one.states)
    pools.assert_rows(
        one.pool(one.states, units, one.hyper, round_index=0), pools.by_hand(resting, units)
    )  # what global leaves, users take


def test_no_shrinkage_of_a_level_equals_deleting_it() -> None:
    levels = (Level("global"), Level("video", by="video", shrinkage=0.0), Level("user", by="user"))
    one, two = pools.case(levels), pools.case((levels[0], levels[2]))
    zero = one.states[1]._replace(rows={n: jnp.zeros_like(r) for n, r in one.states[1].rows.items()})
    states, units = (one.states[0], zero, one.states[2]), pools.reports(8, (2,))
    found = one.pool(states, units, one.hyper)
    wanted = two.pool((states[0], states[2]), units, two.hyper)
    assert not any(r.any() for r in found[1].rows.values())
    for a, b in zip((found[0], found[2]), wanted, strict=True):
        for leaf in a.rows:
            np.testing.assert_allclose(a.rows[leaf], b.rows[leaf], atol=1e-6)


def test_the_fixed_point_is_the_shrunk_optimum_of_each_group() -> None:
    """Clients go `progress` of the way to their own optimum; rows end at s times what is left for them."""
    levels = (Level("global"), Level("user", by="user", shrinkage=0.4, progress=0.5))
    one, units = pools.case(levels), pools.reports(0)
    session, optimum = np.asarray(units["body"].session), np.asarray(units["body"].delta)
    weight = np.asarray(units["body"].weight)
    states = one.states
    for _ in range(60):
        theta = (
            np.asarray(states[0].rows["body"])[0] + np.asarray(states[1].rows["body"])[pools.USER[session]]
        )
        units["body"] = units["body"]._replace(delta=jnp.asarray(0.5 * (optimum - theta), jnp.float32))
        states = one.pool(states, units, one.hyper)
    common = np.asarray(states[0].rows["body"])[0]
    for user in range(4):
        mine = pools.USER[session] == user
        own = (weight[mine] * optimum[mine]).sum(axis=0) / weight[mine].sum()
        np.testing.assert_allclose(states[1].rows["body"][user], 0.4 * (own - common), atol=1e-4)


CROSSED = pools.case(
    (
        Level("global"),
        Level("video", by="video", shrinkage=0.7),
        Level("user", by="user", shrinkage=0.5, progress=0.5),
        Level("session", by="session", shrinkage=0.25),
    ),
    crossed=True,
)
CODES = st.lists(st.integers(-1, 2), min_size=12, max_size=12)


@settings(max_examples=15, deadline=None)
@given(
    video=CODES,
    user=CODES,
    weight=st.lists(st.integers(0, 50), min_size=12, max_size=12),
    seed=st.integers(0, 2**16),
)
def test_any_assignment_and_any_weights(
    video: list[int], user: list[int], weight: list[int], seed: int
) -> None:
    """Groups that are empty, unknown, or cross in any way, and clients without weight."""
    states = list(CROSSED.states)
    for index, code in ((1, np.array(video)), (2, np.array(user))):
        members = states[index].members._replace(
            group=jnp.asarray(np.maximum(code, 0), jnp.int32)[:, None],
            share=jnp.asarray(code >= 0, jnp.float32)[:, None],
        )
        states[index] = states[index]._replace(members=members)
    one = CROSSED._replace(states=tuple(states))
    units = {
        leaf: unit._replace(
            weight=unit.weight * jnp.asarray(weight, jnp.float32).reshape(-1, *(1,) * (unit.weight.ndim - 1))
        )
        for leaf, unit in pools.reports(seed).items()
    }
    pools.assert_rows(one.pool(one.states, units, one.hyper), pools.by_hand(one, units), atol=5e-5)


def test_crossed_levels_keep_one_table_of_pairs_for_leaves_of_equal_weight() -> None:
    one = pools.case((Level("global"), Level("video", by="video"), Level("user", by="user")))
    params = {n: jnp.zeros(shape) for n, shape in pools.SHAPES.items()}
    tables = sums.zeros(one.layout, params).levels[2].pair
    assert list(tables) == [1]
    assert {n: x.shape for n, x in tables[1].items()} == {"by client": (4, 3, 1), "video_table": (4, 3, 4)}
