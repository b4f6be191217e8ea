"""Losses: values by hand, and finite gradients where the angle is 0 or pi."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_vp.models import LOSSES, Huber

ANGLES = np.array([0.0, 1e-7, 0.01, 0.1, 0.7, 2.0, math.pi - 1e-3])


def pair(angles: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Directions [window, 1, 3] at the given distances from straight up."""
    true = np.tile(np.array([0.0, 0.0, 1.0]), (len(angles), 1, 1))
    predicted = np.stack([np.sin(angles), np.zeros_like(angles), np.cos(angles)], axis=-1)[:, None]
    return jnp.asarray(predicted, jnp.float32), jnp.asarray(true, jnp.float32)


EXPECTED = {
    "great_circle": ANGLES,
    "huber": np.where(ANGLES < 0.1, ANGLES**2 / 0.2, ANGLES - 0.05),
    "chord": 2 * np.sin(ANGLES / 2),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_values(kind: str) -> None:
    loss = LOSSES[kind]().build()(*pair(ANGLES))
    assert loss.shape == (len(ANGLES), 1)
    np.testing.assert_allclose(np.asarray(loss)[:, 0], EXPECTED[kind], atol=1e-6)


@pytest.mark.contract
@pytest.mark.parametrize("kind", LOSSES)
def test_gradient_is_finite_at_both_ends_and_descends_between(kind: str) -> None:
    angles = np.array([0.0, 1e-7, 0.5, 2.5, math.pi - 1e-7, math.pi])
    predicted, true = pair(angles)
    predicted = predicted.at[-1].set(-true[-1])
    gradient = np.asarray(jax.grad(lambda p: LOSSES[kind]().build()(p, true).sum())(predicted))[:, 0]
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(gradient[0], 0, atol=1e-6)
    toward = np.stack([-np.cos(angles), np.zeros(6), np.sin(angles)], axis=-1)
    assert (np.sum(gradient * toward, axis=-1)[2:4] < -0.1).all()


@pytest.mark.parametrize("kind", LOSSES)
def test_settings_name_their_kind(kind: str) -> None:
    assert LOSSES[kind]().kind == kind


def test_huber_with_a_tiny_delta_is_the_great_circle() -> None:
    predicted, true = pair(ANGLES)
    plain = LOSSES["great_circle"]().build()(predicted, true)
    np.testing.assert_allclose(Huber(delta_rad=1e-6).build()(predicted, true), plain, atol=2e-6)


def test_huber_refuses_a_delta_of_zero() -> None:
    with pytest.raises(ValueError, match="delta_rad is 0"):
        Huber(delta_rad=0.0)
