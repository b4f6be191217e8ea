"""Weights corrected during a session, against a headset that keeps its own account window by window."""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
import toy
from test_evaluate import FED, TRACES, errors_of, phases, ready

from fedjax_vp import evaluate
from fedjax_vp.federated import hedging
from fedjax_vp.federated.federation import build
from fedjax_vp.federated.settings import Evaluate, Mixing
from fedjax_vp.forecasting import own

LEVELS, HORIZON, RATE_HZ = 3, 4, 5.0
NOW = np.array([3, 4, 6, 7, 8, 40, 41, 42, 42, 42], np.int32)  # a hole of 6.4 s, then two that pad
TIMES = hedging.Times(jnp.asarray(NOW), np.arange(1, HORIZON + 1), RATE_HZ)
TYPICAL = np.array([0.1, 0.2, 0.4, 0.5], np.float32)
LEARNED = np.array([[0.0, 0.2, 0.5, 1.0], [0.3, 0.3, 0.5, 0.0], [0.7, 0.5, 0.0, 0.0]], np.float32)


def account(
    learned: np.ndarray,
    error: np.ndarray,
    now: np.ndarray,
    rate: float,
    rate_hz: float,
    typical: np.ndarray = TYPICAL,
) -> np.ndarray:
    """Equations (1) to (3): each forecast enters the account by as much of it as has come true."""
    levels, _, horizon = error.shape
    found = np.zeros(error.shape)
    for k in range(horizon):
        for window, present in enumerate(now):
            lost = np.zeros(levels)
            for earlier in range(len(now) - 1):
                known = min(k + 1, present - now[earlier]) - 1
                if known >= 0:
                    gap = min((now[earlier + 1] - now[earlier]) / rate_hz, 5.0)
                    lost += gap * typical[k] / typical[known] * error[:, earlier, known]
            weight = (learned[:, k] + 1 / levels) / 2 * np.exp(-rate * lost)
            found[:, window, k] = weight / weight.sum()
    return found


def random_errors(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 1, (LEVELS, len(NOW), HORIZON)).astype(np.float32)


def weights(error: np.ndarray, rate: float = 3.0) -> np.ndarray:
    return np.asarray(
        hedging.weights(
            hedging.prior(jnp.asarray(LEARNED), 0), jnp.asarray(error), jnp.asarray(TYPICAL), TIMES, rate
        )
    )


def test_weights_are_those_of_the_account() -> None:
    error = random_errors()
    np.testing.assert_allclose(weights(error), account(LEARNED, error, NOW, 3.0, RATE_HZ), atol=1e-5)


def test_a_forecast_is_judged_only_once_its_time_has_come() -> None:
    error, window, k = random_errors(), 2, 1
    later = error.copy()
    later[0, window, k] += 1.0  # window 2 is at sample 6: what it says of sample 8 is known from then on
    changed = np.abs(weights(later) - weights(error)).max(axis=0) > 1e-6
    np.testing.assert_array_equal(np.flatnonzero(changed[:, k]), np.flatnonzero(NOW[window] + 2 <= NOW))
    assert not changed[:, :k].any()
    # At sample 8 it is the longest that is known of longer forecasts; by the next window all have come true.
    for longer in range(k + 1, HORIZON):
        np.testing.assert_array_equal(np.flatnonzero(changed[:, longer]), np.flatnonzero(NOW == 8))


def test_what_has_come_true_stands_for_the_whole_forecast() -> None:
    """Errors in the proportion of the typical ones tell the same at any time."""
    error = np.array([1.0, 2.0, 3.0])[:, None, None] * TYPICAL + np.zeros((LEVELS, len(NOW), 1))
    passed = np.minimum(np.diff(NOW, prepend=NOW[0]) / RATE_HZ, 5.0).cumsum()
    lost = np.array([1.0, 2.0, 3.0])[:, None] * passed
    wanted = (LEARNED + 1 / LEVELS)[:, None] / 2 * np.exp(-3.0 * lost[:, :, None] * TYPICAL)
    np.testing.assert_allclose(weights(error.astype(np.float32)), wanted / wanted.sum(axis=0), atol=1e-5)


def test_who_serves_gains_weight_and_nobody_is_ruled_out() -> None:
    error = np.full((LEVELS, len(NOW), HORIZON), 0.5, np.float32)
    error[2] = 0.1
    found = weights(error, 20.0)
    assert LEARNED[2, 3] == 0
    np.testing.assert_array_equal(found[2, :, 3], np.maximum.accumulate(found[2, :, 3]))
    assert found[2, -1, 3] > 0.95


def test_a_run_corrects_its_weights_during_each_session() -> None:
    """What is measured is the mixture with the account's weights."""
    mixture = np.random.default_rng(1).dirichlet(np.ones(3), toy.SHAPE.horizon).T.astype(np.float32)
    sim, state = ready(mixing=Mixing("mixture", online=6.0))
    found = errors_of(sim, state, mix=jnp.asarray(mixture))
    sim, _ = ready(mixing=Mixing("mixture"))
    still = errors_of(sim, state, mix=jnp.asarray(mixture))
    first = np.flatnonzero(np.diff(found.session, prepend=-1))
    assert not np.allclose(found.error_deg, still.error_deg, atol=0.05)
    prior = (mixture + 1 / 3) / 2
    start = errors_of(sim, state, mix=jnp.asarray(prior, jnp.float32))
    np.testing.assert_allclose(found.error_deg[first], start.error_deg[first], atol=1e-3)


def test_errors_that_are_typical_of_a_horizon_count_alike() -> None:
    """At all horizons, from the single prefixes' errors, with what is typical by the state's own word."""
    typical = np.array([0.2, 0.7, 1.5], np.float32)
    mixture = np.random.default_rng(1).dirichlet(np.ones(3), 3).T.astype(np.float32)
    sim, state = ready(mixing=Mixing("mixture", online=6.0))
    every = Evaluate(horizons_s=(0.2, 0.4, 0.6), tile_horizons_s=(0.4,))

    def measured(mix: np.ndarray, online: float) -> evaluate.Evaluation:
        method = replace(sim.method, mixing=Mixing("mixture", online=online))
        errors = evaluate.make_errors(own(sim._replace(method=method)), toy.SHAPE, sim.mesh, every)
        weights = evaluate.mixing.same_for_all(jnp.asarray(mix, jnp.float32), FED.num_sessions)
        weights = weights._replace(typical=jnp.asarray(typical))
        return evaluate.evaluate(errors, (state, weights), sim, FED.arrays.test)

    found = measured(mixture, 6.0)
    each = [measured(np.eye(3)[:, d : d + 1] * np.ones((1, 3)), 0.0) for d in range(3)]
    session = found.session == found.session[-1]
    now = np.rint((found.now_s[session] - TRACES.t0[found.session[-1]]) * toy.SHAPE.rate_hz).astype(np.int32)
    error = np.deg2rad([one.error_deg[session] for one in each])
    wanted = account(mixture, error, now, 6.0, toy.SHAPE.rate_hz, typical)
    for window in (1, 2, len(now) - 1):
        one = measured(wanted[:, window], 0.0)
        np.testing.assert_allclose(
            found.error_deg[session][window], one.error_deg[session][window], atol=1e-3
        )


def test_blocks_and_sessions_side_by_side_keep_the_account(monkeypatch: pytest.MonkeyPatch) -> None:
    sim, state = ready(mixing=Mixing("mixture", online=6.0))
    whole = errors_of(sim, state).error_deg
    monkeypatch.setattr(evaluate, "BLOCK", 3)
    monkeypatch.setattr(evaluate, "together", lambda mesh: 2)
    np.testing.assert_allclose(errors_of(sim, state).error_deg, whole, atol=1e-3)


def test_the_account_begins_with_the_windows_that_lead_up_to_the_measured_ones() -> None:
    """Measured late, a window is forecast as it is where all windows before it are measured too."""
    split = phases()
    late = split.test & (np.cumsum(split.test, axis=1) > 2)
    assert late.any(axis=1).sum() < split.test.any(axis=1).sum()  # some sessions are not measured at all
    federation = build(TRACES, split._replace(test=late, lead=split.test & ~late), toy.SHAPE)
    for online in (6.0, 0.0):
        sim, state = ready(mixing=Mixing("mixture", online=online))
        whole = errors_of(sim, state)
        sim = sim._replace(task=sim.task._replace(federation=federation))
        found = errors_of(sim, state, federation.arrays.test)
        seen = dict(zip(zip(whole.session, whole.now_s, strict=True), whole.error_deg, strict=True))
        wanted = [seen[key] for key in zip(found.session, found.now_s, strict=True)]
        assert len(wanted) == late.sum()
        np.testing.assert_allclose(found.error_deg, wanted, atol=1e-3)


def test_what_is_yet_to_come_changes_no_forecast() -> None:
    """Another way from a sample on: what is foreseen of the samples before it stays as it was."""
    sim, state = ready(mixing=Mixing("mixture", online=6.0))
    found = errors_of(sim, state)
    now = np.rint((found.now_s - np.asarray(TRACES.t0)[found.session]) * toy.SHAPE.rate_hz).astype(int)
    turn = int(now[found.session == 0].max()) - 1  # with windows on both sides
    turned = TRACES.direction.copy()
    turned[:, turn:] = -turned[:, turn:]
    federation = build(replace(TRACES, direction=turned), phases(), toy.SHAPE)
    sim = sim._replace(task=sim.task._replace(federation=federation))
    after = errors_of(sim, state, FED.arrays.test).error_deg
    for column, ahead in enumerate((1, 3)):
        before = now + ahead < turn
        assert 0 < before.sum() < len(before)
        np.testing.assert_array_equal(after[before, column], found.error_deg[before, column])
        assert not np.allclose(after[~before, column], found.error_deg[~before, column], atol=1.0)


@pytest.mark.parametrize("rate", [-1.0, 1e39, float("nan")])
def test_an_impossible_rate_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match=r"mixing\.online is .*: give a rate from 0 to 1e\+06"):
        Mixing("mixture", online=rate)
