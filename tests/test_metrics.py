"""Summaries and intervals against numbers worked by hand."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedjax_vp import metrics
from fedjax_vp.errors import UserError


class Windows(NamedTuple):
    session: np.ndarray
    error_deg: np.ndarray
    tiles: np.ndarray


HORIZONS_S = (0.2, 1.0, 5.0)
USER_OF_SESSION = np.array([7, 7, 9, 4], np.int32)  # session 1 has no window


@pytest.fixture
def windows() -> Windows:
    """Session 0: three windows, session 2: one, session 3: two."""
    error = np.array([[1, 2, 3], [2, 4, 6], [3, 6, 9], [10, 20, 40], [0, 1, 2], [4, 3, 0]], np.float32)
    tiles = np.zeros((6, 1, 4), np.float32)
    tiles[:, 0, 0] = [1, 1, 1, 0, 0, 0]
    tiles[:, 0, 3] = [0.5, 0.5, 0.5, 0.5, 0.5, 0.2]
    return Windows(np.array([0, 0, 0, 2, 3, 3], np.int32), error, tiles)


def test_summarize_by_windows(windows: Windows):
    out = metrics.summarize(windows, HORIZONS_S, (1.0,), USER_OF_SESSION)
    np.testing.assert_allclose(out["error_deg"]["mean"], [20 / 6, 36 / 6, 60 / 6])
    np.testing.assert_allclose(out["error_deg"]["median"], [2.5, 3.5, 4.5])
    # linear interpolation at 0.95 * 5 = 4.75 between the two largest
    np.testing.assert_allclose(out["error_deg"]["p95"], [8.5, 16.5, 32.25])
    assert out["num_windows"] == 6


def test_summarize_by_client_and_tables(windows: Windows):
    out = metrics.summarize(windows, HORIZONS_S, (1.0,), USER_OF_SESSION)
    np.testing.assert_allclose(out["by_client"], [14 / 3, 26 / 3, 47 / 3])
    np.testing.assert_allclose(out["worst_decile_deg"], [10, 20, 40])
    assert out["sessions"]["session"] == [0, 2, 3]
    assert out["sessions"]["user"] == [7, 9, 4]
    assert out["sessions"]["windows"] == [3, 1, 2]
    np.testing.assert_allclose(out["sessions"]["error_deg"], [[2, 4, 6], [10, 20, 40], [2, 2, 1]])
    assert out["users"] == {
        "user": [4, 7, 9],
        "sessions": [1, 1, 1],
        "windows": [2, 3, 1],
        "error_deg": [[2.0, 2.0, 1.0], [2.0, 4.0, 6.0], [10.0, 20.0, 40.0]],
    }


def test_summarize_weighs_a_user_by_windows(windows: Windows):
    users = np.array([7, 7, 7, 4], np.int32)
    out = metrics.summarize(windows, HORIZONS_S, (1.0,), users)
    # user 7: three windows of session 0 and one of session 2
    np.testing.assert_allclose(out["users"]["error_deg"][1], [16 / 4, 32 / 4, 58 / 4])
    assert out["users"]["sessions"] == [1, 2]


def test_summarize_tiles(windows: Windows):
    tiles = metrics.summarize(windows, HORIZONS_S, (1.0,), USER_OF_SESSION)["tiles"]
    assert set(tiles) == {"precision", "recall", "f1", "iou"}
    np.testing.assert_allclose(tiles["precision"], [0.5])
    np.testing.assert_allclose(tiles["iou"], [0.45])


def test_summarize_leaves_its_inputs_alone(windows: Windows):
    before = [array.copy() for array in windows]
    for array in windows:
        array.setflags(write=False)
    metrics.summarize(windows, HORIZONS_S, (1.0,), USER_OF_SESSION)
    for array, copy in zip(windows, before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_summarize_refuses_wrong_horizons_and_nothing(windows: Windows):
    with pytest.raises(ValueError, match="do not fit"):
        metrics.summarize(windows, (0.2, 1.0), (1.0,), USER_OF_SESSION)
    empty = Windows(*(array[:0] for array in windows))
    with pytest.raises(UserError, match="no session has a test window"):
        metrics.summarize(empty, HORIZONS_S, (1.0,), USER_OF_SESSION)


def test_worst_decile_takes_a_tenth_at_each_horizon_anew():
    first = np.arange(20.0)
    by_session = np.stack([first, first[::-1] * 2], axis=1)
    np.testing.assert_allclose(metrics.worst_decile(by_session), [18.5, 37.0])
    np.testing.assert_allclose(metrics.worst_decile(by_session[:11]), [9.5, 37.0])  # ceil(1.1) = 2 sessions


def test_long_term_uses_one_to_five_seconds():
    error = np.array([[100.0, 1.0, 3.0, 50.0]])
    np.testing.assert_allclose(metrics.long_term(error, (0.4, 1.0, 5.0, 6.0)), [2.0])
    with pytest.raises(UserError, match="horizons_s"):
        metrics.long_term(error[:, :1], (0.4,))


def test_hurt_counts_beyond_the_margin():
    out = metrics.hurt(np.array([10.0, 10.5, 10.6, 3.0]), np.full(4, 10.0))
    assert (out["count"], out["total"], out["share"]) == (1, 4, 0.25)
    # Wilson with z = 1.959964: center (0.25 + 0.48018) / 1.96036, half sqrt(0.046875 + 0.060022) z / 1.96036
    np.testing.assert_allclose(out["interval"], [0.045587, 0.699358], atol=2e-6)
    assert metrics.hurt(np.array([10.6]), np.array([10.0]), margin_deg=1.0)["count"] == 0


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_scipys(pair: tuple[int, int]):
    count, total = pair
    expected = stats.binomtest(count, total).proportion_ci(method="wilson")
    np.testing.assert_allclose(metrics.wilson(count, total), (expected.low, expected.high), atol=1e-12)


def test_wilson_of_nothing_says_nothing():
    assert metrics.wilson(0, 0) == (0.0, 1.0)


def test_interval_by_hand():
    out = metrics.interval(np.array([[1.0, 4.0], [2.0, 4.0], [3.0, 4.0]]))
    half = 4.302652730 / np.sqrt(3)  # t(0.975, 2 degrees of freedom), standard deviation 1
    np.testing.assert_allclose(out.mean, [2, 4])
    np.testing.assert_allclose(out.low, [2 - half, 4])
    np.testing.assert_allclose(out.half, [half, 0], atol=1e-12)
    assert out.repeats == 3


def test_interval_of_one_seed_has_no_limits():
    out = metrics.interval(np.array([[1.5]]))
    assert out.mean[0] == 1.5
    assert np.isnan(out.low[0])
    assert np.isnan(out.high[0])


def test_paired_cancels_what_seeds_share():
    seeds = np.array([0.0, 10.0, 20.0])
    out = metrics.paired(seeds + 1, seeds)
    assert (float(out.mean), float(out.low), float(out.high)) == (1.0, 1.0, 1.0)
    expected = stats.ttest_rel(seeds * 1.1, seeds).confidence_interval()
    out = metrics.paired(seeds * 1.1, seeds)
    np.testing.assert_allclose([out.low, out.high], [expected.low, expected.high])
    with pytest.raises(ValueError, match="differ"):
        metrics.paired(seeds, seeds[:2])
