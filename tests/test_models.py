"""The contract of every predictor, what the features promise, and that a model learns."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_vp import geometry
from fedjax_vp.models import (
    LOSSES,
    MLP,
    MODELS,
    VIDEO_TABLE,
    Features,
    Inputs,
    ModelSettings,
    Predictor,
    Static,
    Velocity,
    WindowShape,
)
from fedjax_vp.models.features import view_of

SHAPE = WindowShape(history=4, horizon=3, rate_hz=5.0, duration_s=20.0)
LEARNED = [kind for kind in MODELS if kind not in ("static", "velocity")]
SMALL = {
    "mlp": {"hidden": (8,)},
    "gru": {"width": 4},
    "lstm": {"width": 4},
    "transformer": {"width": 4, "num_heads": 2},
    "tcn": {"width": 4, "num_layers": 2},
}
LOSS = LOSSES["great_circle"]().build()


def small(kind: str, features: Features | None = None) -> ModelSettings:
    extra = {} if features is None or kind not in LEARNED else {"features": features}
    return MODELS[kind](**SMALL.get(kind, {}), **extra)


def with_large_head(params: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """A prediction that depends visibly on everything before the head."""
    return {name: leaf * 30 if name == "head/kernel" else leaf for name, leaf in params.items()}


def unit(x: np.ndarray) -> jax.Array:
    return jnp.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True), jnp.float32)


def windows(num: int = 5, shape: WindowShape = SHAPE, seed: int = 0) -> Inputs:
    noise = np.random.default_rng(seed).normal(size=(num, 3 + shape.history, 3))
    past = unit(noise[:, :1] + 0.1 * np.cumsum(noise[:, 3:], axis=1))
    return Inputs(past, jnp.linspace(6.0, 14.0, num, dtype=jnp.float32))


def hard_windows() -> tuple[Inputs, jax.Array]:
    """Static at the front, at both poles, through a pole, and towards the front with opposite targets."""
    poles = np.array([[1.0, 0, 0], [0, 0, 1], [0, 0, -1]])
    past = np.repeat(poles[:, None], SHAPE.history, axis=1)
    angles = np.linspace(-0.3, 0.0, SHAPE.history)
    through = np.stack([np.sin(angles), 0 * angles, np.cos(angles)], axis=-1)
    ahead = np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=-1)
    past = np.concatenate([past, through[None], ahead[None]])
    targets = np.repeat(past[:, -1:], SHAPE.horizon, axis=1)
    targets[:, 1] *= -1  # the opposite direction
    return Inputs(unit(past), jnp.full(5, 8.0)), unit(targets)


def turn(x: jax.Array, yaw: float) -> jax.Array:
    matrix = np.array([[math.cos(yaw), -math.sin(yaw), 0], [math.sin(yaw), math.cos(yaw), 0], [0, 0, 1]])
    return jnp.asarray(np.asarray(x) @ matrix.T, jnp.float32)


class Built(NamedTuple):
    kind: str
    predictor: Predictor
    params: dict[str, jax.Array]
    apply: Callable  # compiled once: compilation is most of the cost
    value_and_grads: Callable  # of the loss by parameters and by the past
    traces: list


@pytest.fixture(scope="module", params=list(MODELS))
def built(request: pytest.FixtureRequest) -> Built:
    predictor = small(request.param, Features(table=2)).build(SHAPE)
    traces = []

    @jax.jit
    def apply(params: dict, inputs: Inputs) -> jax.Array:
        traces.append(None)
        return predictor.apply(params, inputs)

    def loss(params: dict, past: jax.Array, time: jax.Array, target: jax.Array) -> jax.Array:
        return LOSS(predictor.apply(params, Inputs(past, time)), target).mean()

    grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    return Built(request.param, predictor, predictor.init(jax.random.key(0)), apply, grads, traces)


@pytest.mark.contract
def test_init_gives_flat_float32_leaves(built: Built) -> None:
    params = built.params
    assert all(isinstance(leaf, jax.Array) and leaf.dtype == jnp.float32 for leaf in params.values())
    assert not any(leaf.weak_type for leaf in params.values())
    abstract = jax.eval_shape(built.predictor.init, jax.random.key(1))
    assert {k: v.shape for k, v in abstract.items()} == {k: v.shape for k, v in params.items()}
    if built.kind in LEARNED:
        assert {"head/kernel", "head/bias", VIDEO_TABLE} <= set(params)
        assert params[VIDEO_TABLE].shape == (26, 2, 3)
        assert not params[VIDEO_TABLE].any()
    else:
        assert params == {}


@pytest.mark.contract
def test_apply_is_traced_once_and_equals_eager(built: Built) -> None:
    inputs, other = windows(), windows(seed=1)
    large = with_large_head(built.params)
    future = built.apply(large, inputs)
    assert (future.shape, future.dtype) == ((5, SHAPE.horizon, 3), jnp.float32)
    np.testing.assert_allclose(np.linalg.norm(future, axis=-1), 1, atol=2e-6)
    assert not np.allclose(built.apply(large, other), future)
    assert len(built.traces) == 1
    np.testing.assert_allclose(built.predictor.apply(large, inputs), future, atol=5e-6)


@pytest.mark.contract
def test_seeds_side_by_side_and_one_after_the_other_are_each_alone(built: Built) -> None:
    """vmap over seeds = scan over seeds = single calls, of init and apply."""
    if not built.params:
        pytest.skip(f"{built.kind} has no parameters")
    inputs, keys = windows(), jax.random.split(jax.random.key(0), 2)

    @jax.jit
    def both(keys: jax.Array) -> tuple[dict, jax.Array, jax.Array]:
        params = with_large_head(jax.vmap(built.predictor.init)(keys))  # over seeds
        abreast = jax.vmap(built.predictor.apply, in_axes=(0, None))(params, inputs)  # over seeds
        in_turn = jax.lax.scan(lambda _, one: (None, built.predictor.apply(one, inputs)), None, params)[1]
        return params, abreast, in_turn

    params, abreast, in_turn = both(keys)
    for index, key in enumerate(keys):
        alone = with_large_head(built.predictor.init(key))
        for leaf, value in alone.items():
            np.testing.assert_allclose(params[leaf][index], value, atol=1e-5)
        future = built.apply(alone, inputs)
        np.testing.assert_allclose(abreast[index], future, atol=1e-5)
        np.testing.assert_allclose(in_turn[index], future, atol=1e-5)
    assert not np.allclose(abreast[0], abreast[1])


@pytest.mark.contract
def test_windows_do_not_mix(built: Built) -> None:
    inputs, large = windows(), with_large_head(built.params)
    order = jnp.array([3, 1, 4, 0, 2])
    shuffled = built.apply(large, Inputs(inputs.past[order], inputs.time[order]))
    np.testing.assert_allclose(shuffled, built.apply(large, inputs)[order], atol=2e-6)


@pytest.mark.contract
def test_value_and_gradient_are_finite_in_hard_windows(built: Built) -> None:
    inputs, targets = hard_windows()
    for start in (built.params, with_large_head(built.params), jax.tree.map(jnp.zeros_like, built.params)):
        chex.assert_tree_all_finite(built.value_and_grads(start, inputs.past, inputs.time, targets))


@pytest.mark.contract
def test_first_prediction_is_near_no_motion(built: Built) -> None:
    if built.kind == "velocity":
        pytest.skip("velocity moves on purpose")
    inputs = windows()
    moved = np.degrees(geometry.great_circle(built.apply(built.params, inputs), inputs.past[:, -1:]))
    assert moved.max() < 5


def test_turning_the_world_and_its_table_turns_the_prediction(built: Built) -> None:
    params, inputs = with_large_head(built.params), windows()
    ahead = turned = params
    if built.kind in LEARNED:
        table = jax.random.normal(jax.random.key(1), (26, 2, 3))
        ahead, turned = params | {VIDEO_TABLE: table}, params | {VIDEO_TABLE: turn(table, 2.2)}
    world = Inputs(turn(inputs.past, 2.2), inputs.time)
    future = built.apply(turned, world)
    np.testing.assert_allclose(future, turn(built.apply(ahead, inputs), 2.2), atol=1e-4)
    if built.kind in LEARNED:
        assert not np.allclose(built.apply(ahead, world), future, atol=1e-3)


def test_a_table_of_zeros_is_an_unknown_video_and_learns_where_it_is_read(built: Built) -> None:
    if built.kind not in LEARNED:
        pytest.skip(f"{built.kind} reads no table")
    params, inputs = with_large_head(built.params), windows()
    time, later = jnp.full(5, 7.4), jnp.full(5, 10.4)
    unknown = built.apply(params, Inputs(inputs.past, time))
    np.testing.assert_array_equal(built.apply(params, Inputs(inputs.past, later)), unknown)
    target = unit(np.ones((5, SHAPE.horizon, 3)))
    slope = np.asarray(built.value_and_grads(params, inputs.past, time, target)[1][0][VIDEO_TABLE])
    rows = np.flatnonzero(np.abs(slope).sum(axis=(1, 2)))
    np.testing.assert_array_equal(rows, [8, 10, 12])  # 7.4 s + 1, 3 and 5 s, in bins of a second


@pytest.mark.parametrize("features", [Features(yaw=True), Features(time=True)])
def test_yaw_and_time_reach_the_prediction(features: Features) -> None:
    predictor = small("mlp", features).build(SHAPE)
    params, inputs = with_large_head(predictor.init(jax.random.key(0))), windows()
    apply = jax.jit(predictor.apply)
    future = apply(params, inputs)
    turned = turn(apply(params, Inputs(turn(inputs.past, -2.2), inputs.time)), 2.2)
    later = apply(params, Inputs(inputs.past, inputs.time + 3))
    assert np.allclose(turned, future, atol=1e-4) != features.yaw
    assert np.allclose(later, future, atol=1e-4) != features.time


def test_the_table_is_read_on_the_clock_and_clipped_at_its_end() -> None:
    features = Features(table=1, table_at_s=(1.0, 5.0), table_bin_s=0.5)
    feature_map = features.build(SHAPE)
    assert feature_map.num_context == 6
    bins = features.num_bins(SHAPE, 0.5)
    assert bins == 51
    table = jnp.zeros((bins, 1, 3)).at[:, 0, 2].set(jnp.arange(bins, dtype=jnp.float32))
    # 12 s as a float32 clock may say it: t0 + k / rate with an inexact rate.
    time = jnp.array([0.0, 6.25, np.nextafter(np.float32(12), np.float32(0)), 30.0], jnp.float32)
    context = feature_map.context({VIDEO_TABLE: table}, view_of(Inputs(windows(4).past, time)))
    np.testing.assert_array_equal(context[:, jnp.array([2, 5])], [[2, 10], [14, 22], [26, 34], [50, 50]])


def test_static_repeats_the_last_direction() -> None:
    inputs = windows()
    future = Static().build(SHAPE).apply({}, inputs)
    np.testing.assert_array_equal(future, np.repeat(inputs.past[:, -1:], SHAPE.horizon, axis=1))


def constant_turn(num: int, shape: WindowShape, seed: int) -> tuple[Inputs, jax.Array]:
    """Great-circle motion at a constant speed of a window's own: past and future."""
    key = np.random.default_rng(seed)
    start, side = key.normal(size=(2, num, 3))
    start /= np.linalg.norm(start, axis=-1, keepdims=True)
    side = np.cross(start, side)
    side /= np.linalg.norm(side, axis=-1, keepdims=True)
    angle = key.uniform(0.01, 0.08, size=(num, 1)) * np.arange(shape.history + shape.horizon)[None]
    path = np.cos(angle)[..., None] * start[:, None] + np.sin(angle)[..., None] * side[:, None]
    return Inputs(unit(path[:, : shape.history]), jnp.full(num, 6.0)), unit(path[:, shape.history :])


def test_undamped_velocity_is_exact_on_great_circles() -> None:
    inputs, future = constant_turn(50, SHAPE, 0)
    for over_s, damping_s in [(0.2, None), (0.4, math.inf), (9.0, 1e6)]:
        predictor = Velocity(over_s=over_s, damping_s=damping_s).build(SHAPE)
        np.testing.assert_allclose(predictor.apply({}, inputs), future, atol=2e-5)


def test_damped_velocity_travels_as_its_formula_says() -> None:
    inputs, _ = constant_turn(20, SHAPE, 0)
    last = inputs.past[:, -1]
    step = np.asarray(geometry.great_circle(inputs.past[:, -2], last))
    future = Velocity(damping_s=0.5).build(SHAPE).apply({}, inputs)
    ahead = np.arange(1, SHAPE.horizon + 1) / 5.0
    expected = step[:, None] / 0.2 * 0.5 * (1 - np.exp(-ahead / 0.5))[None]
    np.testing.assert_allclose(geometry.great_circle(last[:, None], future), expected, atol=1e-5)


@pytest.mark.parametrize("kind", MODELS)
def test_one_observed_sample_is_enough(kind: str) -> None:
    shape = SHAPE._replace(history=1)
    predictor = small(kind).build(shape)
    params = jax.eval_shape(predictor.init, jax.random.key(0))
    future = jax.eval_shape(predictor.apply, params, windows(shape=shape))
    assert future.shape == (5, SHAPE.horizon, 3)


def test_velocity_of_one_sample_is_no_motion() -> None:
    shape = SHAPE._replace(history=1)
    inputs = windows(shape=shape)
    for settings in (Velocity(), Velocity(damping_s=None)):
        future = settings.build(shape).apply({}, inputs)
        np.testing.assert_allclose(future, jnp.repeat(inputs.past, SHAPE.horizon, axis=1), atol=1e-6)


def test_velocity_feature_starts_from_damped_velocity() -> None:
    inputs, _ = constant_turn(20, SHAPE, 0)
    predictor = MLP(hidden=(4,), features=Features(velocity=True)).build(SHAPE)
    params = predictor.init(jax.random.key(0))
    still = {name: leaf * 0 if name.startswith("head") else leaf for name, leaf in params.items()}
    expected = Velocity().build(SHAPE).apply({}, inputs)
    np.testing.assert_allclose(predictor.apply(still, inputs), expected, atol=2e-4)


def test_settings_name_their_kind_and_are_frozen() -> None:
    for kind, settings in MODELS.items():
        assert settings().kind == kind
        with pytest.raises(dataclasses.FrozenInstanceError):
            settings().kind = "other"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Features(table=-1), "table is -1"),
        (lambda: Features(table=2, table_at_s=()), "table_at_s is"),
        (lambda: Features(table_bin_s=0.0), "table_bin_s is 0"),
        (lambda: MLP(hidden=(0,)), "hidden is"),
        (lambda: MODELS["gru"](width=0), "width is 0"),
        (lambda: MODELS["lstm"](features=Features(velocity=True)), "velocity"),
        (lambda: MODELS["transformer"](width=5), "multiple of num_heads"),
        (lambda: MODELS["tcn"](num_layers=0), "num_layers"),
        (lambda: Velocity(damping_s=0.0), "damping_s is 0"),
        (lambda: Velocity(over_s=-1.0), "over_s is -1"),
    ],
)
def test_bad_settings_are_refused_in_one_line(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def curved_turn(num: int, seed: int) -> tuple[Inputs, jax.Array]:
    """Circles around the vertical axis at a speed that halves every two samples."""
    key = np.random.default_rng(seed)
    speed = (
        key.uniform(-0.5, 0.5, size=(num, 1)) * 0.5 ** (np.arange(SHAPE.history + SHAPE.horizon) / 2)[None]
    )
    yaw = key.uniform(-math.pi, math.pi, size=(num, 1)) + np.cumsum(speed, axis=1)
    elevation = np.broadcast_to(key.uniform(-0.8, 0.8, size=(num, 1)), yaw.shape)
    path = geometry.from_angles(jnp.asarray(yaw, jnp.float32), jnp.asarray(elevation, jnp.float32))
    return Inputs(path[:, : SHAPE.history], jnp.full(num, 6.0)), path[:, SHAPE.history :]


LEARNS = [
    pytest.param(kind, marks=[] if kind in ("mlp", "gru") else [pytest.mark.slow], id=kind)
    for kind in LEARNED
]


@pytest.mark.parametrize("kind", LEARNS)
def test_a_model_learns_what_static_and_velocity_cannot(kind: str) -> None:
    settings = MLP(hidden=(32,)) if kind == "mlp" else MODELS[kind](**SMALL.get(kind, {}))
    predictor = settings.build(SHAPE)
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, 400))

    @jax.jit
    def train(params: dict, inputs: Inputs, target: jax.Array) -> dict:
        def step(carry: tuple, _: None) -> tuple:
            params, state = carry
            grads = jax.grad(lambda p: LOSS(predictor.apply(p, inputs), target).mean())(params)
            updates, state = optimizer.update(grads, state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), None, 400)[0][0]

    params = train(predictor.init(jax.random.key(0)), *curved_turn(128, 0))
    inputs, target = curved_turn(128, 1)
    baselines = (Static(), Velocity(), Velocity(damping_s=None))
    errors = [float(LOSS(m.build(SHAPE).apply({}, inputs), target).mean()) for m in baselines]
    learned = float(LOSS(predictor.apply(params, inputs), target).mean())
    assert learned < 0.7 * min(errors)
