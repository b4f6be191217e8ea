"""The GRU with hand-written derivatives equals the plain one, in value and in every derivative."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_vp.models.base import learned
from fedjax_vp.models.features import Features, Inputs, WindowShape
from fedjax_vp.models.gru import GRUNet

WIDTH, WINDOWS = 5, 3


def windows(shape: WindowShape) -> tuple[Inputs, jax.Array]:
    rng = np.random.default_rng(1)
    walk = rng.normal(size=(WINDOWS, 1, 3)) + 0.3 * np.cumsum(
        rng.normal(size=(WINDOWS, shape.history + shape.horizon, 3)), axis=1
    )
    walk = jnp.asarray(walk / np.linalg.norm(walk, axis=-1, keepdims=True), jnp.float32)
    past = walk[:, : shape.history]
    return Inputs(past, jnp.array([0.0, 3.0, 7.5])), walk[:, shape.history :]


def pair(shape: WindowShape, steps: bool, features: Features):
    """Objectives of the fast and the plain network as functions of parameters and windows."""
    objectives = []
    for plain in (False, True):
        predictor = learned(GRUNet(WIDTH, shape.horizon, steps, plain), features, shape)

        def objective(params, inputs, target, apply=predictor.apply):
            found = apply(params, inputs)
            return jnp.sum(found * target * jnp.arange(1.0, 4.0)[None, None, :]), found

        objectives.append(jax.value_and_grad(objective, argnums=(0, 1), has_aux=True))
    params = predictor.init(jax.random.key(0))
    noise = jax.random.split(jax.random.key(1), len(params))
    params = {
        n: p + 0.3 * jax.random.normal(k, p.shape) for (n, p), k in zip(params.items(), noise, strict=True)
    }
    return objectives, params


def close(fast, plain) -> None:
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(fast), jax.tree.leaves(plain), strict=True):
        scale = float(jnp.max(jnp.abs(b)))
        np.testing.assert_allclose(a, b, rtol=0, atol=6e-6 * max(scale, 1.0), err_msg=str(path))


@pytest.mark.parametrize(
    ("steps", "features", "history"),
    [
        (False, Features(), 4),
        (True, Features(), 1),  # no movement to read
        (False, Features(yaw=True, time=True, table=1, table_at_s=(0.2, 1.0)), 3),
        (True, Features(table=2, table_at_s=(0.2,)), 3),
    ],
)
def test_fused_is_plain(steps: bool, features: Features, history: int) -> None:
    shape = WindowShape(history=history, horizon=6, rate_hz=5.0, duration_s=10.0)
    (fast, plain), params = pair(shape, steps, features)
    inputs, target = windows(shape)
    found, expected = jax.jit(fast)(params, inputs, target), jax.jit(plain)(params, inputs, target)
    close(found, expected)
    assert all(float(jnp.max(jnp.abs(g))) > 1e-3 for n, g in expected[1][0].items() if "encoder" not in n)


def test_fused_is_plain_side_by_side() -> None:
    """Clients of a block have their own weights and windows."""
    shape = WindowShape(history=4, horizon=6, rate_hz=5.0, duration_s=10.0)
    (fast, plain), params = pair(shape, False, Features(yaw=True))
    inputs, target = windows(shape)
    several = jax.tree.map(lambda x: jnp.stack([x, 0.7 * x]), params)
    turned = jax.tree.map(lambda x: jnp.stack([x, x[::-1]]), (inputs, target))
    close(jax.jit(jax.vmap(fast))(several, *turned), jax.jit(jax.vmap(plain))(several, *turned))


def test_fused_derivatives_are_those_of_differences() -> None:
    """A reference that shares no code with either."""
    shape = WindowShape(history=3, horizon=4, rate_hz=5.0, duration_s=10.0)
    (fast, _), params = pair(shape, True, Features())
    inputs, target = windows(shape)
    fast = jax.jit(fast)
    gradient = fast(params, inputs, target)[1][0]
    for index, (name, leaf) in enumerate(sorted(params.items())):
        way = jax.random.normal(jax.random.key(index), leaf.shape)
        ahead, behind = (
            fast(params | {name: leaf + sign * 3e-3 * way}, inputs, target)[0][0] for sign in (1, -1)
        )
        expected = float(ahead - behind) / 6e-3
        np.testing.assert_allclose(
            jnp.sum(gradient[name] * way), expected, rtol=2e-2, atol=2e-2, err_msg=name
        )
