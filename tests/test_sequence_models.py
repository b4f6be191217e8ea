"""Inner parts of the recurrent and convolutional models against NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_vp.models import GRU, Inputs, WindowShape
from fedjax_vp.models.lstm import fold, from_map, to_map
from fedjax_vp.models.tcn import delayed

SHAPE = WindowShape(history=4, horizon=3, rate_hz=5.0, duration_s=20.0)


def random_past(num: int) -> jax.Array:
    noise = np.random.default_rng(0).normal(size=(num, 1 + SHAPE.history, 3))
    past = noise[:, :1] + 0.1 * np.cumsum(noise[:, 1:], axis=1)
    return jnp.asarray(past / np.linalg.norm(past, axis=-1, keepdims=True), jnp.float32)


def test_map_of_the_lstm_goes_round_and_folds_over_the_poles() -> None:
    x = random_past(20)
    np.testing.assert_allclose(from_map(to_map(x)), x, atol=2e-6)
    places = jnp.array([[0.3, 1.1], [0.9, -0.2], [1.2, 0.5], [-0.1, 0.4], [0.2, 0.7]])
    folded = fold(places)
    expected = [[0.8, 0.9], [0.4, 0.2], [0.2, 0.5], [0.9, 0.4], [0.2, 0.7]]
    np.testing.assert_allclose(folded, expected, atol=1e-6)
    np.testing.assert_allclose(from_map(folded), from_map(places), atol=1e-5)  # the same place


def test_delayed_is_a_causal_dilated_convolution() -> None:
    x = jax.random.normal(jax.random.key(0), (2, 6, 3))
    kernel = jax.random.normal(jax.random.key(1), (9, 4))
    found = np.asarray(delayed(x, 2) @ kernel)
    taps = np.asarray(kernel).reshape(3, 3, 4)
    for time in range(6):
        terms = [np.asarray(x)[:, time - 2 * lag] @ taps[lag] for lag in range(3) if time >= 2 * lag]
        np.testing.assert_allclose(found[:, time], sum(terms), atol=1e-5)


def test_gru_on_positions_is_the_plain_one() -> None:
    """Oracle: PyTorch's equations written out in NumPy."""
    predictor = GRU(width=4, inputs="positions").build(SHAPE)
    params = predictor.init(jax.random.key(0))
    params["head/kernel"] *= 30
    assert sum(leaf.size for leaf in params.values()) == 2 * (3 * 12 + 12 + 4 * 12 + 12) + 4 * 3 + 3
    p = {name: np.asarray(leaf, np.float64) for name, leaf in params.items()}
    past = np.asarray(random_past(1), np.float64)[0]
    past = past @ _to_front(past[-1]).T

    def cell(prefix: str, x: np.ndarray, h: np.ndarray) -> np.ndarray:
        gx = x @ p[f"{prefix}_input/kernel"] + p[f"{prefix}_input/bias"]
        gh = h @ p[f"{prefix}_hidden/kernel"] + p[f"{prefix}_hidden/bias"]
        r, z = 1 / (1 + np.exp(-(gx[:4] + gh[:4]))), 1 / (1 + np.exp(-(gx[4:8] + gh[4:8])))
        return (1 - z) * np.tanh(gx[8:] + r * gh[8:]) + z * h

    h = np.zeros(4)
    for x in past:
        h = cell("encoder", x, h)
    position, expected = past[-1], []
    for _ in range(SHAPE.horizon):
        h = cell("decoder", position, h)
        position = position + h @ p["head/kernel"] + p["head/bias"]
        position /= np.linalg.norm(position)
        expected.append(position)
    found = jax.jit(predictor.apply)(params, Inputs(jnp.asarray(past[None], jnp.float32), jnp.zeros(1)))
    np.testing.assert_allclose(found[0], expected, atol=1e-5)


def _to_front(direction: np.ndarray) -> np.ndarray:
    cos, sin = direction[:2] / np.linalg.norm(direction[:2])
    return np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
