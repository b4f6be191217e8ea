"""Calibrated presets have the statistics they promise; planted groups are there, where they are asked for."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_vp.data.synthetic import (
    PRESETS,
    Planted,
    Synthetic,
    generate,
    root_key,
    session_fn,
    session_ids,
)
from fedjax_vp.data.synthetic.latents import _unit, even, even_category, to_normal
from fedjax_vp.data.traces import TraceSet

HORIZON = 25  # samples
NO_MOTION_DEG = {  # mean error of the public data sets at 0.2, 1, 2, 5 s
    "jin-like": (3.40, 14.16, 22.42, 32.32),
    "wu-like": (2.82, 12.08, 19.67, 30.19),
    "david-like": (7.29, 32.46, 54.47, 80.67),
}
SHARES = {"jin-like": (0.38, 0.18), "wu-like": (0.30, 0.29), "david-like": (0.43, 0.05)}  # user, video


def angle_deg(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.degrees(2 * np.arctan2(np.linalg.norm(a - b, axis=-1), np.linalg.norm(a + b, axis=-1)))


@cache
def calibrated(preset: str) -> tuple[TraceSet, np.ndarray]:
    """Sessions, and as [user, video, time, 3]."""
    traces = generate(Synthetic(preset=preset, users=40, videos=24, duration_s=60.0))
    return traces, traces.direction.reshape(40, 24, -1, 3)


def variance_shares(value: np.ndarray) -> tuple[float, float]:
    """Two-way random effects of a table [user, video]: shares of user and video in the variance."""
    users, videos = value.shape
    by_user, by_video = value.mean(axis=1), value.mean(axis=0)
    rest = value - by_user[:, None] - by_video[None, :] + value.mean()
    error = (rest**2).sum() / ((users - 1) * (videos - 1))
    user, video = by_user.var(ddof=1) - error / videos, by_video.var(ddof=1) - error / users
    return user / (user + video + error), video / (user + video + error)


@pytest.mark.parametrize("preset", list(PRESETS))
def test_no_motion_error_is_that_of_the_data_set(preset: str) -> None:
    traces, table = calibrated(preset)
    now = np.arange(30, table.shape[2] - HORIZON)
    errors = [angle_deg(table[:, :, now], table[:, :, now + h]) for h in (1, 5, 10, 25)]
    np.testing.assert_allclose([e.mean() for e in errors], NO_MOTION_DEG[preset], rtol=0.1)
    if preset != "david-like":  # heavy tails
        assert 0.25 < np.median(errors[1]) / errors[1].mean() < 0.6
    assert traces.num_traces == 40 * 24


@pytest.mark.parametrize("preset", list(PRESETS))
def test_speed_varies_by_user_and_video_as_in_the_data_set(preset: str) -> None:
    _, table = calibrated(preset)
    speed = np.linalg.norm(np.diff(table, axis=2), axis=-1).mean(axis=2)
    np.testing.assert_allclose(variance_shares(np.log(speed)), SHARES[preset], atol=0.1)


@pytest.mark.parametrize("preset", ["jin-like", "wu-like"])
def test_viewers_of_a_video_look_the_same_way_at_the_same_time(preset: str) -> None:
    _, table = calibrated(preset)
    crowd, viewers = table[::2].mean(axis=0), table[1::2]
    now = np.arange(30, table.shape[2] - HORIZON)

    def ratio(others: np.ndarray) -> float:
        guess = 0.3 * viewers[:, :, now] + 0.7 * others[None, :, now + HORIZON]
        guess /= np.linalg.norm(guess, axis=-1, keepdims=True)
        target = viewers[:, :, now + HORIZON]
        return angle_deg(guess, target).mean() / angle_deg(viewers[:, :, now], target).mean()

    assert 0.82 < ratio(crowd) < 0.95
    assert ratio(np.roll(crowd, 50, axis=1)) > ratio(crowd) + 0.01  # it is locked to the video's time


def test_speed_tells_the_next_tenths_of_a_second() -> None:
    _, table = calibrated("jin-like")
    now = np.arange(30, table.shape[2] - HORIZON)
    last, before, target = table[:, :, now], table[:, :, now - 1], table[:, :, now + 1]
    guess = last + 0.8 * (last - before)
    guess /= np.linalg.norm(guess, axis=-1, keepdims=True)
    assert angle_deg(guess, target).mean() < 0.75 * angle_deg(last, target).mean()


@pytest.mark.parametrize("settings", [Synthetic(users=5, videos=3), Planted(users=5, videos=3)])
def test_a_session_is_a_pure_function_of_key_and_id(settings: Synthetic | Planted) -> None:
    traces = generate(settings)
    one = jax.jit(session_fn(settings))
    for row, session in ((0, 0), (7, 7), (14, 14)):
        made = one(root_key(settings), jnp.int32(session))
        row = int(np.flatnonzero((traces.user == made.user) & (traces.video == made.video))[0])
        # Fused differently for one session than for a block: the same to a few units in the last place.
        np.testing.assert_allclose(np.asarray(made.direction), traces.direction[row], atol=2e-5)
    assert one._cache_size() == 1
    other = one(jax.random.key(99), jnp.int32(0))
    assert np.abs(np.asarray(other.direction) - traces.direction[0]).max() > 0.05


def test_more_users_leave_the_first_ones_as_they_are() -> None:
    few, many = generate(Synthetic(users=3, videos=4)), generate(Synthetic(users=9, videos=4))
    np.testing.assert_allclose(many.direction[:12], few.direction, atol=2e-5)


def test_any_number_of_sessions_inside_a_jit() -> None:
    settings = Synthetic(users=2**20, videos=2**10, duration_s=10.0)
    make = session_fn(settings)

    @jax.jit
    def mean_direction(key: jax.Array, ids: jax.Array) -> jax.Array:
        def add(total: jax.Array, block: jax.Array) -> tuple[jax.Array, None]:
            return total + jax.vmap(make, in_axes=(None, 0))(key, block).direction.mean(axis=(0, 1)), None

        return jax.lax.scan(add, jnp.zeros(3), ids.reshape(4, -1))[0] / 4

    ids = jnp.arange(64) * (2**30 // 64) + 5
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    means = np.asarray(jax.vmap(mean_direction, in_axes=(0, None))(keys, ids))
    assert np.isfinite(means).all()
    assert (means[:, 0] > 0.3).all()  # people look to the front
    assert np.abs(means[0] - means[1]).max() > 1e-3


@pytest.mark.parametrize(
    "settings",
    [Synthetic(users=4, videos=2, preset="david-like"), Planted(users=4, videos=6, duration_power=1.0)],
)
def test_trace_sets_are_well_formed(settings: Synthetic | Planted) -> None:
    traces = generate(settings)
    assert traces.direction.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(traces.direction, axis=-1), 1, atol=1e-5)
    for row, length in enumerate(traces.length):
        assert traces.valid[row, :length].all()
        assert not traces.valid[row, length:].any()
        assert (traces.direction[row, length:] == traces.direction[row, length - 1]).all()
    pairs = traces.user * traces.num_videos + traces.video
    assert (np.diff(pairs) > 0).all()
    assert traces.user_ids == ("1", "2", "3", "4")


def test_traits_are_even_at_any_number() -> None:
    for shift in (987654321, 123456789, 2**31 + 7):
        for count in (8, 24, 100):
            index = jnp.arange(count)
            traits = np.sort(jax.vmap(even, in_axes=(None, 0))(jnp.uint32(shift), index))
            assert np.diff(traits, prepend=0, append=1).max() < 3 / count  # three-gap theorem
            assert abs(traits.mean() - 0.5) < 1 / count
            codes = jax.vmap(lambda i, s=shift: even_category(jnp.uint32(s), i, 4))(index)
            assert np.ptp(np.bincount(np.asarray(codes), minlength=4)) <= 3


def motion_windows(traces: TraceSet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Last nine places and displacement one second ahead, in (yaw, elevation); group of each window."""
    yaw = np.unwrap(np.arctan2(traces.direction[..., 1], traces.direction[..., 0]), axis=1)
    place = np.stack([yaw, np.arcsin(traces.direction[..., 2])], axis=-1)
    now = np.arange(30, place.shape[1] - HORIZON, 2)
    scale = np.stack([np.cos(place[:, now, 1]), np.ones_like(place[:, now, 1])], axis=-1)
    past = np.concatenate([(place[:, now - lag] - place[:, now]) * scale for lag in range(1, 10)], axis=-1)
    ahead = (place[:, now + 5] - place[:, now]) * scale
    group = traces.labels["video_category"] * 100 + traces.labels["user_category"]
    return past.reshape(-1, 18), ahead.reshape(-1, 2), np.repeat(group, len(now))


def group_over_global(distance: float) -> float:
    """Error one second ahead of least squares per true group over that of one least squares for all."""
    train, test = (
        motion_windows(generate(Planted(users=16, videos=8, distance=distance, seed=seed))) for seed in (1, 2)
    )

    def error(by_group: bool) -> float:
        total = 0.0
        for group in np.unique(test[2]) if by_group else [None]:
            rows, tests = (
                (slice(None), slice(None)) if group is None else (train[2] == group, test[2] == group)
            )
            weights = np.linalg.lstsq(train[0][rows], train[1][rows])[0]
            total += np.linalg.norm(test[0][tests] @ weights - test[1][tests], axis=-1).sum()
        return total

    return error(True) / error(False)


def test_distance_is_what_a_model_of_the_group_gains() -> None:
    none, some, much = (group_over_global(distance) for distance in (0.0, 0.5, 4.0))
    assert none > 0.97
    assert much < 0.7
    assert much < some < none


def test_planted_labels_follow_the_tree() -> None:
    traces = generate(Planted(users=12, videos=6, user_categories=3, video_categories=2))
    for label, owner, count in (("user_category", traces.user, 3), ("video_category", traces.video, 2)):
        assert len({(o, c) for o, c in zip(owner, traces.labels[label], strict=True)}) == owner.max() + 1
        assert set(traces.labels[label]) == set(range(count))
    nested = generate(Planted(users=12, videos=6, user_categories=3, nested=True))
    kinds = [len(set(nested.labels["user_category"][nested.user == user])) for user in range(12)]
    assert max(kinds) > 1


def test_imbalance_and_scarcity_set_the_sessions_of_users() -> None:
    settings = Planted(users=6, videos=20, sessions_power=1.0, scarcity=0.5)
    ids = session_ids(settings)
    expected = [max(1, round(20 * 0.5 / rank)) for rank in range(1, 7)]
    np.testing.assert_array_equal(np.bincount(ids // 20), expected)
    traces = generate(settings)
    np.testing.assert_array_equal(np.bincount(traces.user), expected)
    assert len(set(traces.video[traces.user >= 3])) > 3  # not everyone's first videos


def test_iid_deals_the_same_traces_to_other_users() -> None:
    plain = generate(Planted(users=16, videos=4, sessions_power=0.3))
    dealt = generate(Planted(users=16, videos=4, sessions_power=0.3, iid=True))
    np.testing.assert_array_equal(dealt.direction, plain.direction)
    np.testing.assert_array_equal(dealt.labels["user_category"], plain.labels["user_category"])
    np.testing.assert_array_equal(np.bincount(dealt.user), np.bincount(plain.user))
    assert (dealt.user != plain.user).mean() > 0.5
    assert len(set(zip(dealt.user, dealt.video, strict=True))) == dealt.num_traces
    kinds = [set(dealt.labels["user_category"][dealt.user == user]) for user in range(16)]
    assert max(map(len, kinds)) == 2  # a user's sessions no longer share its category


@pytest.mark.parametrize(
    ("settings_type", "field", "value"),
    [
        (Synthetic, "users", 0),
        (Synthetic, "duration_s", -1.0),
        (Synthetic, "duration_s", float("inf")),
        (Synthetic, "rate_hz", 0.0),
        (Planted, "videos", 0),
        (Planted, "distance", -1.0),
        (Planted, "scarcity", 1.0),
        (Planted, "min_duration_s", 0.0),
        (Planted, "rate_hz", 1e12),
        (Planted, "user_categories", 10**12),
    ],
)
def test_settings_refuse_bad_values(
    settings_type: type[Synthetic] | type[Planted], field: str, value: float
) -> None:
    with pytest.raises(ValueError, match=rf"^dataset\.{field} is {value}: give"):
        settings_type(**{field: value})


def test_the_rarest_draws_are_finite() -> None:
    """One in 2^24 draws has all its bits set: six of them in a hundred thousand sessions."""
    ends = _unit(jnp.asarray([0, 2**32 - 1], jnp.uint32))
    assert 0 < float(ends[0]) < float(ends[1]) < 1
    assert np.isfinite(np.asarray(to_normal(ends))).all()
