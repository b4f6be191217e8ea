"""Mixing of prefixes by horizon: never worse than the best single prefix on the windows it was fitted on."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from fedjax_vp.federated import mixing
from fedjax_vp.federated.settings import Mixing

LEVELS, WINDOWS, HORIZON = 3, 40, 4
COUNTS = np.ones(HORIZON, bool)


def fit(problem: tuple[np.ndarray, np.ndarray, np.ndarray], kind: str = "mixture") -> np.ndarray:
    """Common weights [level, horizon] learned on a problem."""
    zero = jnp.zeros(WINDOWS, jnp.int32)
    predicted, target, weight = map(jnp.asarray, problem)
    found = mixing.Validation(predicted, target, weight, weight, zero, zero)
    return np.asarray(FIT(Mixing(kind), found))[0]


FIT = jax.jit(lambda settings, found: mixing.fit(settings, found, 0, 1, COUNTS), static_argnums=0)


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
    weights = fit((predicted, target, weight))
    np.testing.assert_allclose(weights.sum(axis=0), 1.0, atol=1e-5)
    assert (weights >= 0).all()
    singles = np.stack([errors(p, target, weight) for p in predicted])
    found = errors(mixed(weights, predicted), target, weight)
    assert (found <= singles.min(axis=0) + 1e-3).all()
    assert (found < 0.95 * singles.min(axis=0)).any()  # independent errors: averaging helps


@pytest.mark.parametrize("seed", range(2))
def test_best_prefix_is_the_argmin_at_each_horizon(seed: int) -> None:
    predicted, target, weight = problem(seed)
    weights = fit((predicted, target, weight), "best_prefix")
    singles = np.stack([errors(p, target, weight) for p in predicted])
    np.testing.assert_array_equal(weights, np.eye(LEVELS)[singles.argmin(axis=0)].T)


def test_a_useless_level_is_left_out() -> None:
    predicted, target, weight = problem(0)
    predicted[1] = unit(-target)
    weights = fit((predicted, target, weight))
    assert weights[1].max() < 0.05


def test_mix_is_the_normalized_sum() -> None:
    predicted, *_ = problem(1)
    weights = np.random.default_rng(2).dirichlet(np.ones(LEVELS), HORIZON).T.astype(np.float32)
    found = mixing.mix(jnp.asarray(weights)[:, None], jnp.asarray(predicted))
    np.testing.assert_allclose(found, mixed(weights, predicted), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1.0, atol=1e-5)


def test_the_last_level_alone_is_the_whole_hierarchy() -> None:
    predicted, *_ = problem(1)
    found = mixing.mix(mixing.last_level(LEVELS, HORIZON)[:, None], jnp.asarray(predicted))
    np.testing.assert_allclose(found, predicted[-1], atol=1e-6)


USERS, EACH = 8, 20
SAFE = Mixing("mixture", prior=0.0, safe=True, most_hurt=0.0)


def crowd(hurt: int = 2, groups: int = USERS) -> mixing.Validation:
    """Users of `EACH` windows: a second level that helps all but the first `hurt`, whom it leads astray."""
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(USERS), EACH)
    target = unit(rng.normal(size=(len(user), HORIZON, 3)))
    noise = rng.normal(size=(2, len(user), HORIZON, 3))
    spread = np.stack([np.full(len(user), 0.3), np.where(user < hurt, 0.6, 0.05)])
    predicted = unit(target[None] + spread[:, :, None, None] * noise)
    one = np.ones(len(user), np.float32)
    row = np.arange(len(user)) // EACH % groups
    arrays = (predicted, target, one, one / EACH, row.astype(np.int32), user.astype(np.int32))
    return mixing.Validation(*map(jnp.asarray, arrays))


def learn(settings: Mixing, found: mixing.Validation, num_groups: int = 0) -> np.ndarray:
    run = jax.jit(lambda found: mixing.fit(settings, found, num_groups, USERS, COUNTS))
    return np.asarray(run(found))


def hurt_share(rows: np.ndarray, found: mixing.Validation) -> float:
    """Users worse off than with the first level by more than half a degree, window by window in NumPy."""
    worse = np.zeros(USERS)
    for w, (row, user) in enumerate(zip(found.row.tolist(), found.user.tolist(), strict=True)):
        weights = rows[min(row, len(rows) - 1)]
        predicted = np.asarray(found.predicted[:, w : w + 1])
        target = np.asarray(found.target[w])
        for sign, one in ((1, weights), (-1, np.eye(2)[:, :1] * COUNTS)):
            mixture = unit(np.einsum("lk,lwkc->wkc", one, predicted))[0]
            angles = [oracle.great_circle_deg(mixture[k], target[k]) for k in range(HORIZON)]
            worse[user] += sign * np.mean(angles) / EACH
    return float(np.mean(worse > 0.5))


def test_a_safe_mixture_retreats_until_nobody_is_hurt() -> None:
    found = crowd()
    everyone = found._replace(row=jnp.zeros_like(found.row))
    plain, safe = (learn(settings, everyone) for settings in (Mixing("mixture"), SAFE))
    assert hurt_share(plain, everyone) == 2 / USERS
    assert hurt_share(safe, everyone) == 0
    assert (safe[0, 1] < plain[0, 1]).all()
    np.testing.assert_allclose(safe.sum(axis=1), 1.0, atol=1e-5)
    tolerant = learn(Mixing("mixture", prior=0.0, safe=True, most_hurt=0.25), everyone)
    np.testing.assert_allclose(tolerant, plain, atol=1e-6)


def test_users_with_weights_of_their_own_are_safe_and_nobody_else_pays() -> None:
    rows = learn(Mixing("mixture", per="user", prior=0.0, safe=True, most_hurt=0.0), crowd(), USERS)
    assert rows.shape == (USERS + 1, 2, HORIZON)
    assert hurt_share(rows[:USERS], crowd()) == 0
    assert rows[:2, 1].max() < 0.5  # led astray by the second level
    assert rows[2:USERS, 1].min() > 0.8
    np.testing.assert_allclose(rows[-1], learn(SAFE, crowd()._replace(row=jnp.zeros(USERS * EACH, int)))[0])


@pytest.mark.parametrize("kind", ["mixture", "best_prefix"])
def test_groups_are_shrunk_toward_all_by_their_sessions(kind: str) -> None:
    found = crowd()
    own, half, common = (
        learn(Mixing(kind, per="user", prior=prior), found, USERS) for prior in (0.0, 1.0, 1e9)
    )
    np.testing.assert_allclose(common, np.broadcast_to(common[-1], common.shape), atol=1e-6)
    if kind == "mixture":  # one session a user: half its own, half common
        np.testing.assert_allclose(half[:USERS], (own[:USERS] + common[:USERS]) / 2, atol=1e-5)
    else:
        assert set(np.unique(half)) == {0.0, 1.0}
        assert (own[:2, 0] == 1).all()
        assert (common[:, 1] == 1).all()


def test_a_group_nobody_validated_has_the_common_weights() -> None:
    found = crowd(groups=3)
    rows = learn(Mixing("mixture", per="video", prior=0.0), found._replace(row=found.row + 1), 4)
    np.testing.assert_allclose(rows[0], rows[-1], atol=1e-6)


def test_users_are_hurt_by_their_error_from_one_to_five_seconds() -> None:
    np.testing.assert_array_equal(np.flatnonzero(mixing.hurt_horizons(6, 1.0)), [0, 1, 2, 3, 4])
    np.testing.assert_array_equal(np.flatnonzero(mixing.hurt_horizons(25, 5.0)), np.arange(4, 25))
    assert mixing.hurt_horizons(3, 5.0).all()  # the horizon ends before
