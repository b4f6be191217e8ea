"""TraceSet: stacking, natural order, windows against a loop."""

from __future__ import annotations

import numpy as np
import pytest

from fedjax_vp.data.traces import Session, TraceSet, natural_order, stack_sessions


def _unit(rng: np.random.Generator, length: int) -> np.ndarray:
    vectors = rng.normal(size=(length, 3))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def traces() -> TraceSet:
    rng = np.random.default_rng(0)
    sessions = [
        Session("10", "b", 0.0, _unit(rng, 12), {"gaze": np.ones((12, 2))}, {"kind": "old"}),
        Session("2", "b", 5.6, _unit(rng, 9), {"gaze": np.ones((9, 2))}, {"kind": "new"}),
        Session("2", "a", 0.4, _unit(rng, 3), {"gaze": np.ones((3, 2))}, {"kind": "old"}),
    ]
    return stack_sessions("toy", 5.0, sessions, {"holes": 2})


def test_stacking_orders_pads_and_codes(traces: TraceSet) -> None:
    assert traces.user_ids == ("2", "10")
    assert traces.video_ids == ("a", "b")
    np.testing.assert_array_equal(traces.user, [0, 0, 1])
    np.testing.assert_array_equal(traces.video, [0, 1, 1])
    np.testing.assert_array_equal(traces.length, [3, 9, 12])
    np.testing.assert_array_equal(traces.valid.sum(axis=1), [3, 9, 12])
    np.testing.assert_array_equal(traces.labels["kind"], [1, 0, 1])
    np.testing.assert_array_equal(traces.direction[0, 3:], np.broadcast_to(traces.direction[0, 2], (9, 3)))
    assert traces.channels["gaze"].shape == (3, 12, 2)
    assert traces.counts == {"holes": 2}
    assert (traces.num_traces, traces.num_users, traces.num_videos) == (3, 2, 2)
    assert traces.duration_s == pytest.approx(5.6 + 8 / 5)


def test_a_session_without_a_label_is_of_no_group() -> None:
    sessions = [
        Session(user, "v", 0.0, np.ones((3, 3)), labels=labels)
        for user, labels in (("1", {"kind": "old"}), ("2", {}), ("3", {"kind": ""}), ("4", {"kind": "new"}))
    ]
    np.testing.assert_array_equal(stack_sessions("toy", 5.0, sessions).labels["kind"], [1, -1, -1, 0])


@pytest.mark.parametrize(
    ("history", "horizon", "start_s"), [(1, 2, 0.0), (3, 4, 0.0), (2, 1, 6.0), (9, 9, 0.0)]
)
def test_eligible_windows_against_a_loop(
    traces: TraceSet, history: int, horizon: int, start_s: float
) -> None:
    traces.valid[2, 5] = False
    expected = np.zeros_like(traces.valid)
    for trace in range(traces.num_traces):
        for now in range(traces.valid.shape[1]):
            window = range(now - history + 1, now + horizon + 1)
            inside = window[0] >= 0 and window[-1] < traces.length[trace]
            late = round(float(traces.t0[trace]) + now / 5.0, 6) >= start_s
            expected[trace, now] = inside and late and all(traces.valid[trace, k] for k in window)
    np.testing.assert_array_equal(traces.eligible(history, horizon, start_s), expected)


def test_start_is_met_in_spite_of_rounding() -> None:
    # 5.6 + 2 / 5 is 6 only up to rounding
    session = Session("u", "v", 5.6, np.tile([1.0, 0, 0], (5, 1)))
    mask = stack_sessions("toy", 5.0, [session]).eligible(1, 1, 6.0)
    np.testing.assert_array_equal(mask[0], [False, False, True, True, False])


def test_subset_keeps_indices(traces: TraceSet) -> None:
    part = traces.subset(traces.user == 1)
    assert part.num_traces == 1
    assert part.user_ids == traces.user_ids
    np.testing.assert_array_equal(part.direction[0], traces.direction[2])
    np.testing.assert_array_equal(part.labels["kind"], [1])


def test_natural_order() -> None:
    names = ["10_Cows", "2_Diner", "1_Porto", "user10", "user9", "2_Diner"]
    assert natural_order(names) == ("1_Porto", "2_Diner", "10_Cows", "user9", "user10")


def test_shapes_and_types_are_refused(traces: TraceSet) -> None:
    fields = {name: getattr(traces, name) for name in traces.__dataclass_fields__}
    with pytest.raises(ValueError, match="length must be int32"):
        TraceSet(**fields | {"length": traces.length.astype(np.int64)})
    with pytest.raises(ValueError, match=r"direction must be \[trace, time, 3\]"):
        TraceSet(**fields | {"direction": traces.direction[:, :, :2]})
    with pytest.raises(ValueError, match="label 'x'"):
        TraceSet(**fields | {"labels": {"x": np.zeros(2, np.int32)}})
    with pytest.raises(ValueError, match="channel 'x'"):
        TraceSet(**fields | {"channels": {"x": np.zeros((3, 2, 1), np.float32)}})
    with pytest.raises(ValueError, match="at least one session"):
        stack_sessions("toy", 5.0, [])
