"""No phase shares a sample, a user or a video with another; windows are chosen by video time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_vp.data.protocols import DAVID_TEST_VIDEOS, NETLLM_LISTS
from fedjax_vp.data.splits import (
    NetLLM,
    Protocol,
    Split,
    UnseenBoth,
    UnseenUsers,
    UnseenVideos,
    WithinSession,
    split,
)
from fedjax_vp.data.traces import TraceSet
from fedjax_vp.errors import UserError

RATE = 5.0


def make(
    users: int,
    videos: int,
    length: np.ndarray,
    t0: np.ndarray,
    name: str = "toy",
    holes: np.ndarray | None = None,
) -> TraceSet:
    num = users * videos
    valid = np.arange(length.max())[None, :] < length[:, None]
    if holes is not None:
        valid = valid & ~holes[:, : valid.shape[1]]
    direction = np.zeros((*valid.shape, 3), np.float32)
    direction[..., 0] = 1
    return TraceSet(
        name=name,
        rate_hz=RATE,
        direction=direction,
        length=length.astype(np.int32),
        t0=t0.astype(np.float64),
        valid=valid,
        user=np.repeat(np.arange(users), videos)[:num].astype(np.int32),
        video=np.tile(np.arange(videos), users)[:num].astype(np.int32),
        user_ids=tuple(str(u + 1) for u in range(users)),
        video_ids=tuple(str(v + 1) for v in range(videos)),
    )


def full(users: int = 6, videos: int = 10, samples: int = 150, name: str = "toy") -> TraceSet:
    num = users * videos
    return make(users, videos, np.full(num, samples), np.zeros(num), name)


def samples_of(mask: np.ndarray, history: int, horizon: int) -> np.ndarray:
    """Plain loop: every sample that a window of the mask touches."""
    touched = np.zeros_like(mask)
    for trace, now in zip(*np.nonzero(mask), strict=True):
        touched[trace, now - history + 1 : now + horizon + 1] = True
    return touched


def assert_nothing_leaks(traces: TraceSet, protocol: Protocol, phases: Split) -> None:
    history, horizon = round(protocol.history_s * RATE), round(protocol.horizon_s * RATE)
    masks = {name: mask for name, mask in phases._asdict().items() if name != "row" and mask is not None}
    touched = {name: samples_of(mask, history, horizon) for name, mask in masks.items()}
    # Of the targets of adapt windows only what lies before the sample after the last one's now is used.
    last = np.where(phases.adapt, np.arange(phases.adapt.shape[1])[None, :], -1).max(axis=1)
    touched["adapt"] &= np.arange(phases.adapt.shape[1])[None, :] <= last[:, None] + 1
    session, at = np.nonzero(touched["adapt"])
    since_s = (at - traces.valid.argmax(axis=1)[session]) / RATE
    assert (since_s <= protocol.adapt_s + 1e-6).all()
    for name, mask in masks.items():
        now = np.nonzero(mask)[1]
        assert (now - history + 1 >= 0).all()
        assert (now + horizon < mask.shape[1]).all()
        assert not (touched[name] & ~traces.valid).any(), f"{name} uses samples that do not exist"
    pairs = [("train", "valid"), ("train", "adapt"), ("train", "test"), ("valid", "test"), ("adapt", "test")]
    for a, b in [*pairs, ("valid", "adapt")]:
        assert not (touched[a] & touched[b]).any(), f"{a} and {b} share samples"
    if phases.lead is not None:
        counts = phases.test | phases.valid
        lead, first = phases.lead.any(axis=1), counts.argmax(axis=1)[:, None]
        assert not (lead & ~counts.any(axis=1)).any()
        assert not (phases.lead & (np.arange(phases.lead.shape[1])[None, :] >= first)).any()
        assert not (touched["lead"] & touched["train"]).any()
        assert not (phases.lead & phases.adapt).any()
    time_s = traces.time_s()
    for name in ("train", "valid", "test"):
        assert (time_s[masks[name]] >= protocol.start_s - 1e-6).all()


def described(protocol_type: type[Protocol], **fields: st.SearchStrategy) -> st.SearchStrategy:
    """A type and its fields; built in the test, because type checks at construction draw random numbers."""
    return st.tuples(st.just(protocol_type), st.fixed_dictionaries(fields))


PROTOCOLS = st.one_of(
    described(WithinSession, train_share=st.sampled_from([0.2, 0.6, 0.9])),
    described(UnseenUsers, adapt_s=st.sampled_from([0.0, 4.0, 8.0, 10.0]), fold=st.integers(0, 1)),
    described(
        UnseenVideos, folds=st.integers(2, 4), fold=st.integers(0, 1), adapt_s=st.sampled_from([0.0, 9.0])
    ),
    described(UnseenBoth, adapt_s=st.sampled_from([0.0, 9.0]), reserve_s=st.sampled_from([0.0, 10.0])),
    described(
        UnseenUsers,
        stride=st.integers(1, 4),
        test_stride=st.integers(1, 4),
        start_s=st.sampled_from([0.0, 6.0]),
        valid_share=st.sampled_from([0.0, 0.25, 0.5]),
        horizon_s=st.sampled_from([1.0, 5.0]),
    ),
)


@settings(max_examples=60, deadline=None)
@given(
    description=PROTOCOLS,
    users=st.integers(1, 5),
    videos=st.integers(1, 6),
    seed=st.integers(0, 2**31 - 1),
)
def test_nothing_leaks(
    description: tuple[type[Protocol], dict[str, float]], users: int, videos: int, seed: int
) -> None:
    protocol = description[0](**description[1])
    draw = np.random.default_rng(seed)
    num = users * videos
    length = draw.integers(1, 160, num)
    t0 = np.where(draw.random(num) < 0.3, draw.integers(0, 200, num) / RATE, 0.0)
    holes = draw.random((num, 160)) < 0.004
    traces = make(users, videos, length, t0, holes=holes)
    phases = split(traces, protocol)
    assert_nothing_leaks(traces, protocol, phases)
    trained = (phases.train | phases.valid).any(axis=1)
    tested = phases.test.any(axis=1)
    assert not (phases.adapt.any(axis=1) & phases.train.any(axis=1)).any()
    if isinstance(protocol, UnseenUsers | UnseenBoth):
        assert not set(traces.user[trained]) & set(traces.user[tested])
    if isinstance(protocol, UnseenVideos | UnseenBoth):
        assert not set(traces.video[trained]) & set(traces.video[tested])
    if not isinstance(protocol, WithinSession):
        assert not (phases.train.any(axis=1) & phases.valid.any(axis=1)).any()


def test_unseen_users_takes_odd_positions_and_every_window() -> None:
    traces = full()
    phases = split(traces, UnseenUsers())
    now = np.nonzero(phases.test[np.argmax(phases.test.any(axis=1))])[0]
    np.testing.assert_array_equal(now, np.arange(30, 150 - 25))
    np.testing.assert_array_equal(np.unique(traces.user[phases.test.any(axis=1)]), [1, 3, 5])
    used = phases.train.any(axis=1) | phases.valid.any(axis=1) | phases.test.any(axis=1)
    assert used.all()


def test_validation_spreads_over_users_and_videos() -> None:
    traces = full(users=32, videos=16, samples=60)
    valid = split(traces, UnseenUsers()).valid.any(axis=1)
    np.testing.assert_array_equal(np.bincount(traces.user[valid], minlength=32)[::2], 2)
    np.testing.assert_array_equal(np.bincount(traces.video[valid], minlength=16), 2)


def test_the_only_session_of_a_user_trains() -> None:
    traces = full(users=8, videos=1, samples=60)
    phases = split(traces, UnseenUsers())
    assert not phases.valid.any()
    assert phases.train.any(axis=1).sum() == 4


def test_late_sessions_are_cut_by_video_time() -> None:
    traces = make(2, 1, np.array([150, 60]), np.array([0.0, 32.0]))
    now = np.nonzero(split(traces, UnseenUsers(test_stride=5)).test[1])[0]
    assert now.min() >= 9  # history, not the first 6 s: they passed before the session began
    np.testing.assert_allclose(((now / RATE + 32.0 - 6.0) * RATE) % 5, 0, atol=1e-6)


@pytest.mark.parametrize("protocol", [UnseenUsers, UnseenVideos, UnseenBoth])
def test_adaptation_budgets_share_test_windows(protocol: type[UnseenUsers]) -> None:
    traces = full(samples=120)
    budgets = (0.0, 1.9, 2.0, 5.0, 10.0)
    splits = [split(traces, protocol(adapt_s=budget, reserve_s=10.0)) for budget in budgets]
    for phases in splits:
        np.testing.assert_array_equal(phases.test, splits[0].test)
        np.testing.assert_array_equal(phases.train, splits[0].train)
    tests = splits[0].test.any(axis=1)
    counts, tested = [int(phases.adapt[tests].sum()) for phases in splits], int(tests.sum())
    # History up to 1.8 s, and one more sample to predict, at 2 s; 15 samples more until 5 s, 40 until 10 s.
    assert counts == [0, 0, tested, 16 * tested, 41 * tested]
    assert (split(traces, protocol(adapt_s=4.0)).test == split(traces, protocol()).test).all()


def test_leading_windows_are_what_a_headset_has_forecast_before() -> None:
    traces = full()
    plain = split(traces, UnseenUsers())
    tested = plain.test.any(axis=1)
    assert plain.lead is not None
    # Two seconds of history, then all samples up to the sixth second.
    assert {tuple(np.flatnonzero(row)) for row in plain.lead[tested]} == {tuple(range(9, 30))}
    assert {tuple(np.flatnonzero(row)) for row in plain.lead[plain.valid.any(axis=1)]} == {
        tuple(range(9, 30))
    }
    assert not plain.lead[~tested & ~plain.valid.any(axis=1)].any()
    sparse = split(traces, UnseenUsers(test_stride=5)).lead
    assert sparse is not None
    assert set(np.nonzero(sparse[tested])[1]) == {10, 15, 20, 25}
    adapted = split(traces, UnseenUsers(adapt_s=3.0, reserve_s=10.0)).lead
    assert adapted is not None
    assert {tuple(np.flatnonzero(row)) for row in adapted[tested]} == {tuple(range(50, 60))}


def test_validation_sessions_adapt_as_test_sessions_do() -> None:
    """So that what is learned on validation windows is learned of adapted models."""
    phases = split(full(users=32, videos=16, samples=120), UnseenUsers(adapt_s=8.0))
    valid, test = phases.valid.any(axis=1), phases.test.any(axis=1)
    assert valid.any()
    for phase in (phases.adapt, phases.valid | phases.test):
        np.testing.assert_array_equal(np.unique(phase[valid], axis=0), np.unique(phase[test], axis=0))


def test_within_session_is_ordered_and_shared_out() -> None:
    traces = full(samples=400)
    phases = split(traces, WithinSession())
    train, valid, test = (np.nonzero(mask[0])[0] for mask in (phases.train, phases.valid, phases.test))
    assert train.max() + 35 == valid.min()
    assert valid.max() + 35 == test.min()
    assert test.max() == 400 - 26
    total = len(train) + len(valid) + len(test)
    assert abs(len(test) / total - 0.4) < 0.01
    assert abs(len(valid) / (len(train) + len(valid)) - 0.125) < 0.01


def test_within_session_of_short_sessions() -> None:
    length = np.array([100, 90, 70, 30])  # three phases do not fit, two barely, one, none
    phases = split(make(4, 1, length, np.zeros(4)), WithinSession())
    assert not phases.valid.any()
    np.testing.assert_array_equal(phases.test.any(axis=1), [True, False, False, False])
    np.testing.assert_array_equal(phases.train.any(axis=1), [True, True, True, False])


def test_unseen_both_uses_the_published_videos() -> None:
    traces = full(users=4, videos=8)
    names = (*DAVID_TEST_VIDEOS, "2_Diner", "4_Ocean", "6_DroneFlight")
    named = TraceSet(**{**vars(traces), "video_ids": names})
    phases = split(named, UnseenBoth())
    assert {names[v] for v in traces.video[phases.test.any(axis=1)]} == set(DAVID_TEST_VIDEOS)
    assert {names[v] for v in traces.video[phases.train.any(axis=1)]} == set(names[5:])
    chosen = split(named, UnseenBoth(test_videos=("4_Ocean",)))
    assert {names[v] for v in traces.video[chosen.test.any(axis=1)]} == {"4_Ocean"}
    assert (np.unique(traces.video[split(traces, UnseenBoth()).test.any(axis=1)]) == [4]).all()
    with pytest.raises(UserError, match=r"test_videos names 'nope'.*give some of"):
        split(named, UnseenBoth(test_videos=("nope",)))


@pytest.mark.parametrize(("name", "users", "videos"), [("jin_mmsys22", 84, 27), ("wu_mmsys17", 48, 9)])
def test_netllm_lists_and_windows(name: str, users: int, videos: int) -> None:
    traces = full(users, videos, 300, name)
    protocol = NetLLM()
    phases = split(traces, protocol)
    by_user, by_video = NETLLM_LISTS[name]
    for phase in ("train", "valid", "test"):
        used = getattr(phases, phase).any(axis=1)
        assert {int(traces.user_ids[u]) for u in traces.user[used]} == set(getattr(by_user, phase))
        assert {int(traces.video_ids[v]) for v in traces.video[used]} == set(getattr(by_video, phase))
        first_targets = np.nonzero(getattr(phases, phase)[np.argmax(used)])[0] + 1
        np.testing.assert_array_equal(first_targets, np.arange(30, 300 - 60, 15))
    assert not set(by_user.train) & (set(by_user.valid) | set(by_user.test))
    assert not set(by_video.valid) & set(by_video.test)
    with pytest.raises(UserError, match="netllm has no lists for dataset 'toy'"):
        split(full(), protocol)


@pytest.mark.parametrize(
    ("settings_type", "field", "value"),
    [
        (UnseenUsers, "history_s", 0.0),
        (UnseenUsers, "horizon_s", float("inf")),
        (UnseenUsers, "start_s", float("nan")),
        (UnseenUsers, "stride", 0),
        (UnseenUsers, "valid_share", 0.9),
        (UnseenUsers, "fold", 2),
        (UnseenVideos, "folds", 1),
        (WithinSession, "adapt_s", 3.0),
        (WithinSession, "train_share", 1.0),
        (NetLLM, "start_s", -1.0),
    ],
)
def test_settings_refuse_bad_values(settings_type: type[UnseenUsers], field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^protocol\.{field} is .*: .*give"):
        settings_type(**{field: value})
