"""Levels: who owns what, who is in which group, what a session's model is, and operations that keep it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_vp.errors import UserError
from fedjax_vp.federated import hierarchy, levels, operations, pooling
from fedjax_vp.federated.grouping.settings import IFCA
from fedjax_vp.federated.levels import LevelState
from fedjax_vp.federated.server import Adaptive, Optax
from fedjax_vp.federated.settings import Level, Method

LEAVES = ["body", "head/bias", "video_table"]


@pytest.mark.parametrize(
    ("patterns", "wanted"),
    [
        (("*",), LEAVES),
        (("head/*",), ["head/bias"]),
        (("*", "!video_table"), ["body", "head/bias"]),
        (("!video_table",), ["body", "head/bias"]),
        (("*", "!head/*", "head/bias"), LEAVES),
        (("!*", "body"), ["body"]),
        (("video_table", "body"), ["body", "video_table"]),
        ((), []),
        (("BODY",), []),
    ],
)
def test_ownership_patterns(patterns: tuple[str, ...], wanted: list[str]) -> None:
    assert [leaf for leaf in LEAVES if hierarchy.owns(patterns, leaf)] == wanted


def test_a_leaf_that_nobody_owns_is_refused() -> None:
    with pytest.raises(UserError, match="nobody owns 'video_table'"):
        pools.case((Level("global", owns=("body", "head/*")),))


def test_a_level_that_owns_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"levels: video owns nothing.* like video_tabel"):
        pools.case((Level("global"), Level("video", by="video", owns=("video_tabel",))))


def test_groups_of_one_and_of_joint_labels() -> None:
    assert hierarchy.grouping(pools.LABELS, "").num_groups == 1
    video = hierarchy.grouping(pools.LABELS, "video")
    assert (video.num_groups, video.code.tolist()) == (3, pools.VIDEO.tolist())
    joint = hierarchy.grouping(pools.LABELS, "genre*edge")
    assert joint.num_groups == 4
    genre, edge = pools.LABELS["genre"], pools.LABELS["edge"]
    assert joint.code.tolist() == (2 * genre + edge).tolist()


def test_joint_labels_hold_only_pairs_that_occur_and_unknown_parts_are_unknown() -> None:
    joint = hierarchy.grouping(pools.LABELS, "user*habit")
    assert joint.num_groups == 3
    assert joint.code.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [-1] * 3


def test_an_unknown_label_names_those_there_are() -> None:
    with pytest.raises(UserError, match=r"no label 'usr'.*it has .*user, video"):
        hierarchy.grouping(pools.LABELS, "video*usr")
    asked = Level("cluster", by="video", grouping=IFCA(of="usr"))
    with pytest.raises(UserError, match=r"levels: grouping\.of: no label 'usr'"):
        hierarchy.groupings_of(pools.LABELS, (asked,))


def test_a_label_that_is_known_of_nobody_is_refused() -> None:
    labels = pools.LABELS | {"habit": np.full(12, -1)}
    with pytest.raises(UserError, match="no session has a known 'habit'"):
        hierarchy.grouping(labels, "habit")


FIVE = (
    Level("global", owns=("*", "!video_table")),
    Level("genre", by="genre"),
    Level("video", by="video", owns=("video_table", "head/*")),
    Level("habit", by="habit", server=Adaptive()),
    Level("user", by="user", owns=("*", "!body")),
)


@pytest.fixture(scope="module")
def five() -> pools.Case:
    return pools.case(FIVE)


def test_rows_start_from_the_model_at_the_coarsest_owner_and_zero_below() -> None:
    groups = [hierarchy.grouping(pools.LABELS, level.by) for level in FIVE]
    layout = hierarchy.layout(Method(levels=FIVE), groups, LEAVES, np.arange(12))
    params = {n: jnp.asarray(np.random.default_rng(0).normal(size=s)) for n, s in pools.SHAPES.items()}
    states = levels.init(layout, groups, params)
    assert [tuple(s.rows) for s in states] == list(layout.owned)
    assert [layout.coarsest(n) for n in LEAVES] == [0, 0, 1]
    for index, state in enumerate(states):
        assert state.rows.keys() <= set(LEAVES)
        for leaf, rows in state.rows.items():
            assert rows.shape == (layout.num_groups[index], *pools.SHAPES[leaf])
            first = layout.coarsest(leaf) == index
            np.testing.assert_array_equal(
                rows, np.broadcast_to(params[leaf] if first else 0.0, rows.shape).astype(np.float32)
            )
    for session in range(12):  # whatever its groups, a session starts from the model
        model = levels.model_of(states, jnp.int32(session))
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(np.float32)), model, params)


def _by_hand(states: tuple[LevelState, ...], session: int, leaf: str, depth: int) -> np.ndarray:
    total = np.zeros(pools.SHAPES[leaf])
    for settings_, state in list(zip(FIVE, states, strict=True))[:depth]:
        code = hierarchy.grouping(pools.LABELS, settings_.by).code[session]
        if leaf in state.rows and code >= 0:
            total = total + np.asarray(state.rows[leaf])[code]
    return total


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
def test_a_model_is_the_sum_of_its_rows_down_to_a_depth(five: pools.Case, depth: int) -> None:
    """Users 9 to 11 have no habit: that level adds nothing to them."""
    for session in (0, 4, 11):
        model = levels.model_of(five.states, jnp.int32(session), depth)
        for leaf in LEAVES:
            np.testing.assert_allclose(
                model[leaf], _by_hand(five.states, session, leaf, depth), atol=1e-6, err_msg=leaf
            )


def rows_of(state: LevelState, session: jax.Array, leaf: str) -> jax.Array:
    (member,) = levels.looked_up((state,), session)
    return levels.rows_of(state, member, leaf)


def test_unknown_groups_use_zero_rows(five: pools.Case) -> None:
    rows = rows_of(five.states[3], jnp.arange(12), "body")
    np.testing.assert_array_equal(rows[9:], 0.0)
    assert np.asarray(rows[:9] != 0).all()


def test_soft_memberships_add_shares_of_several_rows(five: pools.Case) -> None:
    share = jnp.tile(jnp.asarray([[0.25, 0.75]]), (12, 1))
    group = jnp.tile(jnp.asarray([[0, 2]], jnp.int32), (12, 1))
    state = five.states[2]._replace(members=levels.Membership(group, share))
    rows = np.asarray(state.rows["video_table"])
    found = rows_of(state, jnp.asarray([5]), "video_table")[0]
    np.testing.assert_allclose(found, 0.25 * rows[0] + 0.75 * rows[2], atol=1e-6)


@pytest.mark.parametrize(
    ("client_of", "varying", "private"),
    [
        (np.arange(12), (), ()),  # a client is a session
        (pools.USER, ("video_table",), ("head/bias",)),  # a client is a user: videos differ within it
        (np.zeros(12, int), ("head/bias", "video_table"), ()),  # one client has everything
    ],
)
def test_which_leaves_vary_within_a_client_and_which_never_leave_it(
    client_of: np.ndarray, varying: tuple[str, ...], private: tuple[str, ...]
) -> None:
    settings_ = (
        Level("global", owns=("body",)),
        Level("video", by="video", owns=("video_table",)),
        Level("user", by="user", owns=("head/*",)),
    )
    groups = [hierarchy.grouping(pools.LABELS, level.by) for level in settings_]
    layout = hierarchy.layout(Method(levels=settings_), groups, LEAVES, client_of)
    assert layout.varying == set(varying)
    assert layout.private == set(private)


@jax.jit
def _all_models(states: tuple[LevelState, ...]) -> dict[str, jax.Array]:
    return jax.vmap(lambda session: levels.model_of(states, session))(jnp.arange(12))


def _models(states: tuple[LevelState, ...]) -> list[dict[str, np.ndarray]]:
    stacked = jax.device_get(_all_models(states))
    return [{leaf: x[i] for leaf, x in stacked.items()} for i in range(12)]


def _same(a: list[dict[str, np.ndarray]], b: list[dict[str, np.ndarray]]) -> None:
    for x, y in zip(a, b, strict=True):
        for leaf in x:
            np.testing.assert_allclose(x[leaf], y[leaf], atol=1e-5, err_msg=leaf)


def _mass(state: LevelState, mass: list[float]) -> LevelState:
    given = jnp.asarray(mass, jnp.float32)
    blocks = {n: jnp.broadcast_to(given[:, None, None], x.shape) for n, x in state.block_mass.items()}
    return state._replace(mass=given, block_mass=blocks)


NESTED = (Level("global", owns=("body", "video_table")), Level("edge", by="edge"), Level("user", by="user"))


@pytest.fixture(scope="module")
def nested() -> pools.Case:
    return pools.case((Level("global"), *NESTED[1:]))


@pytest.mark.parametrize("mass", [[1.0, 2.0, 3.0, 5.0], [0.0, 4.0, 0.0, 0.0], [0.0] * 4])
def test_absorb_keeps_every_model_and_moves_the_weighted_mean(nested: pools.Case, mass: list[float]) -> None:
    world, edge, user = nested.states
    user = _mass(user, mass)
    parent = pooling.parent_of(user, edge)
    assert parent.tolist() == [0, 0, 1, 1]
    new_user, new_edge = operations.absorb(user, edge, parent)
    _same(_models((world, new_edge, new_user)), _models((world, edge, user)))
    for group, mine in ((0, [0, 1]), (1, [2, 3])):
        weight = np.array(mass)[mine]
        if not weight.sum():  # nothing was pooled: nothing moves
            np.testing.assert_array_equal(new_edge.rows["body"][group], edge.rows["body"][group])
            continue
        np.testing.assert_allclose(weight @ np.asarray(new_user.rows["body"])[mine], 0.0, atol=1e-5)
        gained = np.asarray(new_edge.rows["body"][group] - edge.rows["body"][group])
        np.testing.assert_allclose(
            gained, np.average(np.asarray(user.rows["body"])[mine], axis=0, weights=weight), atol=1e-5
        )
    assert not new_user.mass.any()


def test_absorb_with_reset_gives_every_group_its_parents_model(nested: pools.Case) -> None:
    world, edge, user = nested.states
    user = _mass(user, [1.0, 3.0, 2.0, 2.0])
    new_user, new_edge = operations.absorb(user, edge, pooling.parent_of(user, edge), reset=True)
    assert not any(r.any() for r in new_user.rows.values())
    models = _models((world, new_edge, new_user))
    _same(models[:6], [models[0]] * 6)


def test_absorb_weighs_each_block_by_who_trained_it(nested: pools.Case) -> None:
    """A second of the table that only one of two users has seen goes up as that user has it."""
    _, edge, user = nested.states
    user = _mass(user, [1.0, 3.0, 2.0, 2.0])
    seen = user.block_mass["video_table"].at[0, 1].set(0.0).at[:2, 2].set(0.0)
    user = user._replace(block_mass={"video_table": seen})
    new_user, new_edge = operations.absorb(user, edge, pooling.parent_of(user, edge), reset=True)
    gained = np.asarray(new_edge.rows["video_table"] - edge.rows["video_table"])
    rows = np.asarray(user.rows["video_table"])
    np.testing.assert_allclose(gained[0, 0], (rows[0, 0] + 3 * rows[1, 0]) / 4, atol=1e-6)
    np.testing.assert_allclose(gained[0, 1], rows[1, 1], atol=1e-6)
    np.testing.assert_array_equal(gained[0, 2], 0.0)  # nobody has: it stays below
    np.testing.assert_array_equal(new_user.rows["video_table"][:2, 2], rows[:2, 2])
    assert not new_user.block_mass["video_table"].any()


def test_leaves_that_the_parent_does_not_own_stay_where_they_are() -> None:
    one = pools.case((NESTED[0], Level("user", by="user")))
    world, user = one.states
    user = _mass(user, [1.0, 2.0, 3.0, 4.0])
    new_user, new_world = operations.absorb(user, world, pooling.parent_of(user, world), reset=True)
    np.testing.assert_array_equal(new_user.rows["head/bias"], user.rows["head/bias"])
    assert not new_user.rows["body"].any()
    assert "head/bias" not in new_world.rows


def test_absorbing_levels_must_nest() -> None:
    with pytest.raises(UserError, match=r"levels: user\.absorb"):
        pools.case((Level("global"), Level("video", by="video"), Level("user", by="user", absorb=1)))


CODES = st.lists(st.integers(0, 3), min_size=4, max_size=4)


@settings(max_examples=20, deadline=None)
@given(source=CODES)
def test_regroup_by_copying_keeps_every_model(five: pools.Case, source: list[int]) -> None:
    """New row k is a copy of old row source[k]; a session moves to any row that holds what it used."""
    state = five.states[4]
    one_hot = jnp.eye(4)[jnp.asarray(source)]
    old = np.asarray(state.members.group)
    kept = [g for g in range(4) if g in source]
    moved = np.array([[source.index(g) if g in kept else g] for g in old[:, 0]], np.int32)
    new = operations.regroup(state, one_hot, jnp.asarray(moved))
    before, after = _models((*five.states[:4], state)), _models((*five.states[:4], new))
    for session in range(12):
        if old[session, 0] in kept:
            _same([after[session]], [before[session]])


def test_a_split_copies_rows_with_moments_and_counts() -> None:
    """CFL: rows 0 and 2 both come from old row 0; row 3 is switched off."""
    one = pools.case((Level("user", by="user", server=Optax(name="adam", lr=0.1)),))
    state = one.pool(one.states, pools.reports(0, (6, 7, 8)), one.hyper)[0]
    source = jnp.asarray([[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]], jnp.float32)
    group = jnp.asarray(np.where(np.arange(12) % 2, 2, 0)[:, None], jnp.int32)
    new = operations.regroup(state, source, group)
    for x in jax.tree.leaves((new.rows, new.optimizer)):
        np.testing.assert_array_equal(x[0], x[2])
    for x in jax.tree.leaves(new.rows):
        assert not x[3].any()
    assert jax.tree.map(lambda a, b: a.dtype == b.dtype and a.shape == b.shape, new.rows, state.rows)
    assert new.members.group[:2, 0].tolist() == [0, 2]


def test_a_merge_is_the_weighted_mean_of_rows(five: pools.Case) -> None:
    state = _mass(five.states[4], [1.0, 2.0, 3.0, 4.0])
    source = jnp.asarray([[0.25, 0.75, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], jnp.float32)
    new = operations.regroup(state, source, jnp.maximum(state.members.group, 0))
    rows = np.asarray(state.rows["head/bias"])
    np.testing.assert_allclose(new.rows["head/bias"][0], 0.25 * rows[0] + 0.75 * rows[1], atol=1e-6)
    np.testing.assert_array_equal(new.rows["head/bias"][2:], rows[2:])


PARENTS = st.lists(st.integers(0, 2), min_size=4, max_size=4)


@settings(max_examples=20, deadline=None)
@given(old=PARENTS, new=PARENTS)
def test_rebase_keeps_the_sum_of_both_rows(five: pools.Case, old: list[int], new: list[int]) -> None:
    fine, coarse = five.states[4].rows, five.states[2].rows  # user below video: head and table are shared
    before, after = jnp.asarray(old), jnp.asarray(new)
    found = operations.rebase(fine, coarse, before, after)
    for leaf in fine:
        kept = operations.rebase(fine, coarse, before, after, keep="row")
        np.testing.assert_array_equal(kept[leaf], fine[leaf])
        gone = operations.rebase(fine, coarse, before, after, keep="none")[leaf]
        moved = np.array(old) != np.array(new)
        np.testing.assert_array_equal(np.asarray(gone)[moved], 0.0)
        np.testing.assert_array_equal(np.asarray(gone)[~moved], np.asarray(fine[leaf])[~moved])
        if leaf in coarse:
            total = np.asarray(found[leaf] + coarse[leaf][after])
            np.testing.assert_allclose(total, fine[leaf] + coarse[leaf][before], atol=1e-5)
        np.testing.assert_array_equal(np.asarray(found[leaf])[~moved], np.asarray(fine[leaf])[~moved])


@pytest.mark.parametrize("size", [3, operations._SMALL + 1])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_one_number_that_is_not_finite_is_found_in_small_and_large_arrays(size: int, wrong: float) -> None:
    arrays = [jnp.full((2, 2), -1e9), jnp.linspace(-1e6, 1e6, size), jnp.zeros(operations._SMALL)]
    found = jax.jit(operations.all_finite)
    assert found(arrays)
    for index, x in enumerate(arrays):
        bad = x.reshape(-1).at[-1].set(wrong).reshape(x.shape)
        assert not found([*arrays[:index], bad, *arrays[index + 1 :]])
