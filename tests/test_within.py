"""Groups learned within the learned groups of a level above: units follow, rows come along, pooling nests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import grouped
import jax
import jax.numpy as jnp
import numpy as np
import probe
import pytest
from grouped import SESSIONS, case

from fedjax_vp.federated import census, hierarchy, levels, regrouping
from fedjax_vp.federated import learned as learned_of
from fedjax_vp.federated import round as rounds
from fedjax_vp.federated.grouping.scores import score
from fedjax_vp.federated.grouping.settings import CFL, IFCA, PACFL, Grouping, KMeans, Known
from fedjax_vp.federated.placement import make_place
from fedjax_vp.federated.round import State
from fedjax_vp.federated.settings import Everyone, Level, Method

USER, VIDEO = np.repeat(np.arange(4), 3), np.tile(np.arange(3), 4)
KIND = np.array([0, 0, 1])[VIDEO]
HABIT = np.where(KIND == 0, USER % 2, USER // 2)  # a user is of one habit here and may be of another there
VELOCITY = np.array([[1.0, 0.0, 0.5], [1.0, 0.0, -0.5], [-1.0, 0.0, 0.5], [-1.0, 0.0, -0.5]])
FOUR = {"group": 2 * KIND + HABIT, "velocity": VELOCITY, "noise": 0.03, "habit": HABIT, "kind": KIND}
KINDS = KMeans(groups=2, of="video", warmup=2, sketch=0)
HABITS = IFCA(groups=2, of="user", within="kind", windows=0, warmup=3, hold=1)


def stack(kind: Grouping = KINDS, habit: Grouping = HABITS, **more: Any) -> Method:
    """Global, kinds of videos, and within them habits of users."""
    found = (Level("global"), Level("kind", grouping=kind), Level("habit", grouping=habit, **more))
    return Method(levels=found, participation=Everyone(), local=probe.local())


def rows(state: State, level: int) -> np.ndarray:
    """Each session's row."""
    return np.asarray(state.levels[level].members.group[:, 0])


HABIT_KINDS: dict[str, Grouping] = {
    "ifca": HABITS,
    "kmeans": KMeans(groups=2, of="user", within="kind", warmup=4, sketch=0, memory=0.5),
}


@pytest.mark.parametrize("name", list(HABIT_KINDS))
def test_users_are_grouped_anew_within_each_learned_kind_of_video(name: str) -> None:
    one = case(stack(habit=HABIT_KINDS[name]), **FOUR)
    state, _ = one.run(one.start(), 9)
    assert score(rows(state, 1), KIND).ari == 1.0
    np.testing.assert_array_equal(rows(state, 2) // 2, rows(state, 1))
    assert score(rows(state, 2), 2 * KIND + HABIT).ari == 1.0
    kind, habit = census.take(one.sim, state.levels)
    assert (kind["groups"], habit["groups"], habit["ari"]) == (2, 4, 1.0)
    assert sum(habit["sizes"]) == 8  # each user in each kind


def test_within_a_level_of_known_groups_is_the_same_as_by_its_label() -> None:
    by = replace(HABITS, within="")
    label = Level("kind", by="kind")
    one = case(replace(stack(), levels=(Level("global"), label, Level("habit", grouping=HABITS))), **FOUR)
    other = case(
        replace(stack(), levels=(Level("global"), label, Level("habit", "kind", grouping=by))), **FOUR
    )
    grouped.assert_states(one.run(one.start(), 5)[0], other.run(other.start(), 5)[0], atol=0)


def test_pooling_is_what_it_is_where_every_pair_of_levels_is_taken_as_crossed() -> None:
    one = case(stack(shrinkage=0.5, progress=0.5), **FOUR)
    assert one.sim.layout.relation[2, 1] == "nested"
    crossed = one.sim.layout._replace(relation=dict.fromkeys(one.sim.layout.relation, "crossed"))
    other = one._replace(sim=one.sim._replace(task=one.sim.task._replace(layout=crossed)))
    other = other._replace(round=jax.jit(rounds.make_round(other.sim)))
    grouped.assert_states(one.run(one.start(), 7)[0], other.run(other.start(), 7)[0])


def test_relations_through_a_learned_parent() -> None:
    """Kinds lie within genres, so habits do; videos between a kind and its habits cross them."""
    fed = grouped.federation(**FOUR, genre=KIND, shelf=KIND)
    stack_ = (
        Level("genre", by="genre"),
        Level("kind", by="genre", grouping=KINDS),
        Level("video", by="video"),
        Level("shelf", by="shelf"),
        Level("habit", grouping=HABITS),
    )
    found = hierarchy.groupings_of(fed.labels, stack_)
    layout = hierarchy.layout(Method(levels=stack_), found, ["body"], np.arange(SESSIONS))
    wanted = {(1, 0): "nested", (4, 1): "nested", (4, 0): "nested", (4, 2): "crossed", (4, 3): "nested"}
    assert {pair: layout.relation[pair] for pair in wanted} == wanted
    assert layout.num_groups == (2, 4, 3, 2, 8)


def test_when_a_kind_divides_every_session_keeps_its_model() -> None:
    """Its habits' rows are copied, and units begin where they come from."""
    one = case(stack(), **FOUR)
    state, _ = one.run(one.start(), 1)
    random = np.random.default_rng(0)
    states = [
        level._replace(
            rows={n: jnp.asarray(random.normal(size=x.shape), jnp.float32) for n, x in level.rows.items()}
        )
        for level in state.levels
    ]
    known = states[2].learned
    share = jnp.asarray(np.eye(2)[np.arange(known.seen.shape[0]) // 2 % 2], jnp.float32)
    states[2] = learned_of.with_share(states[2], known, share)
    state = state._replace(levels=tuple(states))
    after, (fact,) = regrouping.regroup(one.sim.method, state, 2)
    assert fact["moved"] == 1  # the smaller kind's video
    assert len(np.unique(rows(after, 1))) == 2
    assert len(np.unique(rows(after, 2))) == 4
    for session in range(SESSIONS):
        before, now = (levels.model_of(s.levels, jnp.int32(session)) for s in (state, after))
        for leaf in before:
            np.testing.assert_allclose(now[leaf], before[leaf], atol=1e-6)


def test_units_that_all_sessions_have_left_are_forgotten() -> None:
    """Each session is a unit: those of the kind that moves are known there and not where they were."""
    one = case(stack(habit=replace(HABITS, of="session")), **FOUR)
    state, _ = one.run(one.start(), 9)
    known = state.levels[2].learned
    assert known.seen.shape == (2 * SESSIONS,)
    live = np.zeros(2 * SESSIONS, bool)
    live[np.asarray(known.unit)] = True
    np.testing.assert_array_equal(np.asarray(known.seen) > 0, live)


@pytest.mark.parametrize("away", [(9, 10), (11,)])
def test_what_never_trained_knows_nothing(away: tuple[int, ...]) -> None:
    """User 3 trains in one kind alone, the one whose videos move or the other, and has a session in both."""
    one = case(stack(), **FOUR | {"empty": away})
    state, _ = one.run(one.start(), 5)
    known = state.levels[2].learned
    seen, unit = np.asarray(known.seen), np.asarray(known.unit)
    trains = next(session for session in (9, 10, 11) if session not in away)
    assert seen[unit[trains]] > 0
    assert not seen[unit[list(away)]].any()


def test_in_a_kind_new_to_them_known_users_are_placed_by_their_first_windows() -> None:
    """Users 1 and 3 have one habit where they trained, and two where they have not."""
    new = (5, 11)
    one = case(stack(), **FOUR | {"empty": new, "early": new})
    state, _ = one.run(one.start(), 9)
    found = rows(make_place(one.sim)(state), 2)
    assert HABIT[4] == HABIT[10]
    np.testing.assert_array_equal(found[list(new)], found[[2, 8]])  # of the same habits, by users 0 and 2
    assert found[2] != found[8]


def test_a_video_that_joins_another_kind_does_not_mix_its_habits_in() -> None:
    """Group 0 of one kind may be group 1 of the other."""
    one = case(stack(), **FOUR)
    level = one.start().levels[2]
    moved = np.array([[1.0, 0.0], [0.4, 0.6]], np.float32)
    np.testing.assert_array_equal(regrouping._under(moved, level), np.eye(4))
    split = np.array([[1.0, 0.0], [1.0, 0.0]], np.float32)
    np.testing.assert_array_equal(regrouping._under(split, level).argmax(axis=1), [0, 1, 0, 1])


def test_newcomers_are_placed_within_the_kind_that_they_watch() -> None:
    """User 3 is new and has first seconds; user 0 has trained in both kinds, but not in session 1."""
    new, aside = (9, 10, 11), 1
    habit = np.where(KIND == 0, USER % 2, (USER + 1) % 2)  # users 0 to 2 have both habits in both kinds
    known = FOUR | {"group": 2 * KIND + habit, "empty": (*new, aside), "early": new}
    one = case(stack(), **known)
    state, _ = one.run(one.start(), 9)
    assert score(rows(state, 1)[[0, 1, 2]], KIND[[0, 1, 2]]).ari == 1.0
    found = make_place(one.sim)(state)
    assert np.asarray(found.levels[2].members.share).all()
    np.testing.assert_array_equal(rows(found, 2) // 2, rows(found, 1))
    for session in new:
        like = next(
            s for s in range(9) if (KIND[s], habit[s]) == (KIND[session], habit[session]) and s != aside
        )
        assert rows(found, 2)[session] == rows(found, 2)[like]
    assert rows(found, 2)[aside] == rows(found, 2)[0]  # of the same user and kind: its unit is known


def test_on_a_new_video_known_users_are_of_their_habit_in_its_kind() -> None:
    """Video 1 is new: its first seconds place it in kind 0. There users behave unlike themselves, in vain."""
    new = np.flatnonzero(VIDEO == 1)
    habit = np.where(VIDEO == 1, 1 - HABIT, HABIT)
    one = case(stack(), **FOUR | {"group": 2 * KIND + habit, "empty": tuple(new), "early": tuple(new)})
    state, _ = one.run(one.start(), 9)
    # The new video's unit begins in the other kind.
    level = state.levels[1]
    share = level.learned.share.at[1].set(level.learned.share[2])
    states = (state.levels[0], learned_of.with_share(level, level.learned, share), state.levels[2])
    found = make_place(one.sim)(state._replace(levels=states))
    np.testing.assert_array_equal(rows(found, 1)[new], rows(state, 1)[VIDEO == 0])
    np.testing.assert_array_equal(rows(found, 2)[new], rows(state, 2)[VIDEO == 0])


def test_a_label_divides_once() -> None:
    levels_ = (Level("kind", "genre", grouping=KINDS), Level("habit", "genre*edge", grouping=HABITS))
    with pytest.raises(ValueError, match=r"which lies within \['genre'\] already: take that out of by"):
        Method(levels=levels_)


@pytest.mark.parametrize(
    ("kind", "habit", "message"),
    [
        (KINDS, replace(HABITS, within="kinds"), "'kinds': above it are global, kind"),
        (IFCA(groups=2, of="video", soft=True), HABITS, "'kind', where a session may be in several groups"),
        (
            KINDS,
            PACFL(groups=2, of="user", within="kind"),
            "learned while training, but pacfl groups before it",
        ),
        (Known(), replace(HABITS, within="habit"), "'habit': above it are global, kind"),
        (IFCA(groups=2, of="video"), CFL(of="user", within="kind"), "'kind', whose groups keep changing"),
    ],
)
def test_what_cannot_be_learned_within_is_said(kind: Grouping, habit: Grouping, message: str) -> None:
    with pytest.raises(ValueError, match=f"levels: habit.grouping.within is .*{message}"):
        stack(kind, habit)


def test_a_split_of_cfl_takes_the_finer_rows_along() -> None:
    """Kinds found by recursive bipartition: the same groups as by k-means."""
    kinds = CFL(
        groups=2, of="video", warmup=2, every=2, sketch=0, relative=False, eps1=0.3, eps2=0.3, min_size=2
    )
    one = case(stack(kind=kinds, habit=replace(HABITS, warmup=6)), **FOUR)
    state, facts = one.run(one.start(), 12)
    assert sum(fact["splits"] for fact in facts) == 1
    assert score(rows(state, 2), 2 * KIND + HABIT).ari == 1.0
