"""Checks, repairs and great-circle interpolation, against SciPy's Slerp."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy.spatial.transform import Rotation, Slerp

from fedjax_vp.data.resample import BadTrace, RawSession, Rules, great_circle_deg, resample, slerp_at

MENDING = Rules(mend_order=True, mend_holes=True, mend_rows=True)


def _raw(time_s: np.ndarray | list[float], direction: np.ndarray | None = None) -> RawSession:
    time_s = np.asarray(time_s, float)
    if direction is None:
        angle = 0.1 * np.arange(len(time_s))
        direction = np.stack([np.cos(angle), np.sin(angle), np.zeros_like(angle)], 1)
    return RawSession("u", "v", "file.csv", np.arange(1, len(time_s) + 1), time_s, direction)


def _refused(raw: RawSession, rules: Rules = Rules()) -> BadTrace:  # noqa: B008
    with pytest.raises(BadTrace) as caught:
        resample(raw, rules, Counter())
    return caught.value


def test_slerp_against_scipy() -> None:
    rng = np.random.default_rng(1)
    rotations = Rotation.random(20, random_state=2)
    time_s = np.cumsum(rng.uniform(0.05, 0.4, 20))
    query_s = rng.uniform(time_s[0], time_s[-1], 200)
    quaternion = np.roll(rotations.as_quat(), 1, axis=1) * rng.choice([-1.0, 1.0], (20, 1))
    raw = _raw(time_s)._replace(channels={"quaternion": quaternion})
    session = resample(raw, Rules(rate_hz=7.0, max_hole_s=9.0), Counter())
    grid = Slerp(time_s, rotations)(session.t0 + np.arange(len(session.direction)) / 7.0)
    got = Rotation.from_quat(np.roll(session.channels["quaternion"], -1, axis=1))
    assert (grid.inv() * got).magnitude().max() < 1e-9
    # in the plane of two vectors, a rotation about their normal is the great circle
    axis = np.array([0.0, 0.6, 0.8])
    turns = np.linspace(0, 3, 20)
    planar = Rotation.from_rotvec(turns[:, None] * axis)
    vectors = planar.apply([1.0, 0, 0])
    np.testing.assert_allclose(
        slerp_at(time_s, vectors, query_s), Slerp(time_s, planar)(query_s).apply([1.0, 0, 0]), atol=1e-12
    )


def test_slerp_of_equal_and_opposite_vectors() -> None:
    same = slerp_at(np.array([0.0, 1.0]), np.array([[0.0, 0, 1], [0.0, 0, 1]]), np.array([0.3]))
    np.testing.assert_allclose(same, [[0, 0, 1]])
    opposite = slerp_at(np.array([0.0, 1.0]), np.array([[0.0, 0, 1], [0.0, 0, -1]]), np.array([0.3, 0.7]))
    np.testing.assert_allclose(opposite, [[0, 0, 1], [0, 0, -1]])


def test_grid_starts_and_ends_inside_the_rows() -> None:
    session = resample(_raw([0.21, 0.5, 0.8, 1.19]), Rules(), Counter())
    assert session.t0 == pytest.approx(0.4)
    assert len(session.direction) == 4  # 0.4, 0.6, 0.8, 1.0
    held = resample(_raw([0.021, 0.2, 0.4]), Rules(start_slack_s=0.05), Counter())
    assert held.t0 == 0.0
    np.testing.assert_allclose(held.direction[0], [1, 0, 0])
    float32 = resample(_raw(np.float32([54.4, 54.6, 54.8]).astype(float)), Rules(), Counter())
    assert float32.t0 == pytest.approx(54.4)
    assert len(float32.direction) == 3


def test_refusals_name_file_row_and_reason() -> None:
    nan = _raw([0.0, 0.2, 0.4])
    nan.direction[1, 2] = np.nan
    long = _raw([0.0, 0.2, 0.4])
    long.direction[2] *= 1.02
    cases = {
        "not_finite": (nan, "row 2"),
        "not_unit": (long, "row 3"),
        "time_order": (_raw([0.0, 0.4, 0.2]), "row 3"),
        "negative_time": (_raw([-0.2, 0.0, 0.2]), "row 1"),
        "hole": (_raw([0.0, 0.2, 1.8, 2.0]), "row 3"),
        "too_short": (_raw([0.05, 0.1]), "fewer than 2 samples"),
        "duplicate": (_raw([0.0, 0.2, 0.4, 0.0, 0.2]), "row 4"),
    }
    for reason, (raw, where) in cases.items():
        error = _refused(raw)
        assert error.reason == reason
        assert "file.csv" in str(error)
        assert where in str(error)
        assert "\n" not in str(error)
    assert "same as in the row before" in str(_refused(_raw([0.0, 0.2, 0.2])))


def test_small_norm_errors_are_rounding() -> None:
    raw = _raw([0.0, 0.2, 0.4])
    counts: Counter[str] = Counter()
    session = resample(raw._replace(direction=raw.direction * 1.009), Rules(), counts)
    np.testing.assert_allclose(np.linalg.norm(session.direction, axis=1), 1)
    assert not +counts


def test_mending_is_counted() -> None:
    counts: Counter[str] = Counter()
    # the row at 0.1 comes late; the stretch after the hole has most rows although it is shorter
    time_s = [0.0, 0.3, 0.1, 1.2, 1.9, 4.0, 4.1, 4.2, 4.3, 4.4, 4.5]
    raw = _raw(time_s)
    raw.direction[6] = np.nan
    raw.direction[7] *= 3
    session = resample(raw, MENDING, counts)
    assert session.t0 == pytest.approx(4.0)
    assert len(session.direction) == 3
    assert +counts == {
        "rows_out_of_order": 1,
        "traces_out_of_order": 1,
        "holes": 1,
        "traces_cut_at_holes": 1,
        "rows_cut_at_holes": 4,
        "rows_not_finite": 1,
        "rows_normalized": 1,
    }


def test_late_rows_are_dropped_by_the_running_maximum() -> None:
    raw = _raw([0.0, 0.2, 0.5, 0.3, 0.45, 0.6])
    counts: Counter[str] = Counter()
    session = resample(raw, MENDING, counts)
    kept = [0, 1, 2, 5]
    expected = slerp_at(raw.time_s[kept], raw.direction[kept], np.array([0.0, 0.2, 0.4, 0.6]))
    np.testing.assert_allclose(session.direction, expected)
    assert counts["rows_out_of_order"] == 2


def test_great_circle_near_both_ends() -> None:
    x = np.array([[1.0, 0, 0]])
    for angle in (0.0, 1e-7, 1.0, np.pi - 1e-7, np.pi):
        other = np.array([[np.cos(angle), np.sin(angle), 0]])
        assert great_circle_deg(x, other)[0] == pytest.approx(np.degrees(angle), abs=1e-9)


def test_rate_is_checked() -> None:
    with pytest.raises(ValueError, match="rate_hz"):
        Rules(rate_hz=0.0)
