"""Mixing of prefixes by horizon: never worse than the best single prefix on the windows it was fitted on."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from fedjax_vp.federated import mixing

LEVELS, WINDOWS, HORIZON = 3, 40, 4
FIT = jax.jit(mixing.fit, static_argnums=3)


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def problem(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predictions whose levels are good at different horizons, targets, and weights with padding."""
    rng = np.random.default_rng(seed)
    target = unit(rng.normal(size=(WINDOWS, HORIZON, 3)))
    spread = rng.uniform(0.05, 0.6, (LEVELS, 1, HORIZON, 1))
    predicted = unit(target[None] + spread * rng.normal(size=(LEVELS, WINDOWS, HORIZON, 3)))
    weight = (np.arange(WINDOWS) < 31).astype(np.float32)
    predicted[:, 31:] = unit(rng.normal(size=(LEVELS, 9, HORIZON, 3)))  # padding must not count
    return predicted, target, weight


def errors(predicted: np.ndarray, target: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Mean error by horizon, a window at a time."""
    real = np.flatnonzero(weight)
    return np.array(
        [
            np.mean([oracle.great_circle_deg(predicted[w, k], target[w, k]) for w in real])
            for k in range(HORIZON)
        ]
    )


def mixed(weights: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """The mixture by hand."""
    total = np.zeros(predicted.shape[1:])
    for level in range(LEVELS):
        for k in range(HORIZON):
            total[:, k] += weights[level, k] * predicted[level, :, k]
    return unit(total)


@pytest.mark.parametrize("seed", range(4))
def test_a_mixture_is_no_worse_than_the_best_prefix(seed: int) -> None:
    predicted, target, weight = problem(seed)
    weights = np.asarray(FIT(jnp.asarray(predicted), jnp.asarray(target), jnp.asarray(weight), False))
    np.testing.assert_allclose(weights.sum(axis=0), 1.0, atol=1e-5)
    assert (weights >= 0).all()
    singles = np.stack([errors(p, target, weight) for p in predicted])
    found = errors(mixed(weights, predicted), target, weight)
    assert (found <= singles.min(axis=0) + 1e-3).all()
    assert (found < 0.95 * singles.min(axis=0)).any()  # independent errors: averaging helps


@pytest.mark.parametrize("seed", range(2))
def test_best_prefix_is_the_argmin_at_each_horizon(seed: int) -> None:
    predicted, target, weight = problem(seed)
    weights = np.asarray(FIT(jnp.asarray(predicted), jnp.asarray(target), jnp.asarray(weight), True))
    singles = np.stack([errors(p, target, weight) for p in predicted])
    np.testing.assert_array_equal(weights, np.eye(LEVELS)[singles.argmin(axis=0)].T)


def test_a_useless_level_is_left_out() -> None:
    predicted, target, weight = problem(0)
    predicted[1] = unit(-target)
    weights = np.asarray(FIT(jnp.asarray(predicted), jnp.asarray(target), jnp.asarray(weight), False))
    assert weights[1].max() < 0.05


def test_mix_is_the_normalized_sum() -> None:
    predicted, *_ = problem(1)
    weights = np.random.default_rng(2).dirichlet(np.ones(LEVELS), HORIZON).T.astype(np.float32)
    found = mixing.mix(jnp.asarray(weights), jnp.asarray(predicted))
    np.testing.assert_allclose(found, mixed(weights, predicted), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1.0, atol=1e-5)


def test_the_last_level_alone_is_the_whole_hierarchy() -> None:
    predicted, *_ = problem(1)
    found = mixing.mix(mixing.last_level(LEVELS, HORIZON), jnp.asarray(predicted))
    np.testing.assert_allclose(found, predicted[-1], atol=1e-6)
