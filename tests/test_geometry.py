"""Sphere geometry against NumPy in float64, at the ends of its domain and on usual tilings."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_vp import geometry


def random_directions(num: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(num, 3))
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def angle64(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Great circle in float64 from the cross product: independent of the form under test."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.arctan2(np.linalg.norm(np.cross(a, b), axis=-1), np.sum(a * b, axis=-1))


def haversine(yaw_a: float, up_a: float, yaw_b: float, up_b: float) -> float:
    inner = math.sin((up_b - up_a) / 2) ** 2
    inner += math.cos(up_a) * math.cos(up_b) * math.sin((yaw_b - yaw_a) / 2) ** 2
    return 2 * math.asin(min(1.0, math.sqrt(inner)))


def test_great_circle_is_accurate_from_end_to_end() -> None:
    base = random_directions(64)
    across = np.cross(base, random_directions(64, 1))
    across /= np.linalg.norm(across, axis=-1, keepdims=True)
    ends = np.concatenate([np.logspace(-9, -1, 60), math.pi - np.logspace(-9, -1, 60)])
    angles = np.concatenate([[0.0, math.pi / 2, math.pi], ends, np.linspace(0, math.pi, 101)])
    targets = np.cos(angles)[:, None, None] * base + np.sin(angles)[:, None, None] * across
    targets = targets.astype(np.float32)
    found = jax.jit(geometry.great_circle)(base[None], targets)
    np.testing.assert_allclose(found, angle64(base[None], targets), atol=1e-6, rtol=0)
    assert np.all((np.asarray(found) >= 0) & (np.asarray(found) <= np.float32(math.pi)))


@given(st.floats(-3.1, 3.1), st.floats(-1.5, 1.5), st.floats(-3.1, 3.1), st.floats(-1.5, 1.5))
@settings(max_examples=50, deadline=None)
def test_great_circle_of_angles_is_the_haversine(
    yaw_a: float, up_a: float, yaw_b: float, up_b: float
) -> None:
    a = geometry.from_angles(jnp.float32(yaw_a), jnp.float32(up_a))
    b = geometry.from_angles(jnp.float32(yaw_b), jnp.float32(up_b))
    # 3e-4 near pi, where asin itself loses half of the digits.
    expected = haversine(yaw_a, up_a, yaw_b, up_b)
    assert float(geometry.great_circle(a, b)) == pytest.approx(expected, abs=2e-6 if expected < 3 else 3e-4)


@pytest.mark.parametrize("angle", [0.0, 1e-7, 1e-4, 1.0, math.pi - 1e-4, math.pi - 1e-7, math.pi])
@pytest.mark.parametrize("axis", [0, 2])
def test_great_circle_has_a_bounded_gradient_everywhere(angle: float, axis: int) -> None:
    base = np.zeros(3)
    base[axis] = 1
    across = np.zeros(3)
    across[1] = 1
    target = (math.cos(angle) * base + math.sin(angle) * across).astype(np.float32)
    if angle == math.pi:
        target = -base.astype(np.float32)
    gradients = jax.grad(geometry.great_circle, argnums=(0, 1))(jnp.asarray(base, jnp.float32), target)
    for gradient in map(np.asarray, gradients):
        assert np.isfinite(gradient).all()
        expected = 0.0 if angle in (0.0, math.pi) else 1.0
        assert np.linalg.norm(gradient) == pytest.approx(expected, abs=1e-3)
    if angle not in (0.0, math.pi):
        np.testing.assert_allclose(gradients[0], -across, atol=2e-3)  # moving towards the target


def test_second_order_gradient_is_finite_at_equal_directions() -> None:
    base = jnp.array([0.6, 0.0, 0.8])
    slope = jax.jvp(jax.grad(lambda x: geometry.great_circle(x, base)), (base,), (jnp.ones(3),))[1]
    assert np.isfinite(slope).all()


def test_angles_go_round() -> None:
    x = np.concatenate([random_directions(200), np.eye(3), -np.eye(3)]).astype(np.float32)
    yaw, elevation = geometry.to_angles(jnp.asarray(x))
    np.testing.assert_allclose(geometry.from_angles(yaw, elevation), x, atol=1e-6)
    np.testing.assert_allclose(np.asarray(yaw)[[202, 205]], 0)  # the poles
    left = geometry.from_angles(jnp.float32(math.pi / 2), jnp.float32(0.0))
    np.testing.assert_allclose(left, [0, 1, 0], atol=1e-7)


def test_exp_and_log_are_inverse_and_keep_lengths() -> None:
    base, target = random_directions(500), random_directions(500, 1)
    target[:50] = base[:50] + 1e-4 * target[:50]  # near pairs
    target /= np.linalg.norm(target, axis=-1, keepdims=True)
    tangent = geometry.log_map(jnp.asarray(base), jnp.asarray(target))
    np.testing.assert_allclose(geometry.exp_map(jnp.asarray(base), tangent), target, atol=3e-6)
    tangent = np.asarray(tangent)
    np.testing.assert_allclose(np.linalg.norm(tangent, axis=-1), angle64(base, target), atol=2e-6)
    np.testing.assert_allclose(np.sum(tangent * base, axis=-1), 0, atol=5e-6)


def test_log_at_equal_and_opposite_directions_is_finite() -> None:
    base = jnp.concatenate([random_directions(20), jnp.eye(3)])
    np.testing.assert_array_equal(geometry.log_map(base, base), 0)
    opposite = np.asarray(geometry.log_map(base, -base))
    np.testing.assert_allclose(np.linalg.norm(opposite, axis=-1), math.pi, rtol=1e-6)
    for target in (base, -base):
        slopes = jax.jacobian(lambda b, t: geometry.log_map(b, t).sum(), (0, 1))(base, target)
        assert all(np.isfinite(slope).all() for slope in slopes)


def test_cos_sinc_matches_on_both_sides_of_its_series() -> None:
    r = np.concatenate([[0.0], np.logspace(-6, 1, 200), [0.0999999, 0.1, 0.1000001]])
    cos, sinc = geometry.cos_sinc(jnp.asarray(r * r, jnp.float32))
    np.testing.assert_allclose(cos, np.cos(r), atol=2e-6)
    np.testing.assert_allclose(sinc, np.sinc(r / np.pi), atol=2e-6)
    slope = jax.vmap(jax.grad(lambda s: geometry.cos_sinc(s)[1]))(jnp.asarray([0.0, 0.00999, 0.01001]))
    np.testing.assert_allclose(slope, -1 / 6, atol=1e-3)


def test_slerp_moves_at_constant_speed_on_the_great_circle() -> None:
    a, b = random_directions(50), random_directions(50, 1)
    for share in (0.0, 0.25, 0.5, 1.0):
        middle = np.asarray(geometry.slerp(jnp.asarray(a), jnp.asarray(b), jnp.full(50, share, jnp.float32)))
        np.testing.assert_allclose(angle64(a, middle), share * angle64(a, b), atol=5e-6)
        np.testing.assert_allclose(angle64(b, middle), (1 - share) * angle64(a, b), atol=5e-6)
    half = geometry.slerp(jnp.asarray(a), -jnp.asarray(a), jnp.full(50, 0.5, jnp.float32))
    np.testing.assert_allclose(angle64(a, half), math.pi / 2, atol=1e-5)


def test_yaw_frame_turns_the_direction_to_the_front_and_back() -> None:
    x, other = random_directions(100), random_directions(100, 1)
    frame = geometry.yaw_frame(jnp.asarray(x))
    seen = np.asarray(geometry.to_yaw_frame(jnp.asarray(x), frame))
    np.testing.assert_allclose(seen[:, 1], 0, atol=1e-7)
    assert (seen[:, 0] >= 0).all()
    np.testing.assert_array_equal(seen[:, 2], x[:, 2])
    yaw = np.arctan2(x[:, 1], x[:, 0])
    turned = np.asarray(geometry.to_yaw_frame(jnp.asarray(other), frame))
    expected = np.arctan2(other[:, 1], other[:, 0]) - yaw
    np.testing.assert_allclose(
        np.exp(1j * np.arctan2(turned[:, 1], turned[:, 0])), np.exp(1j * expected), atol=1e-5
    )
    np.testing.assert_allclose(geometry.from_yaw_frame(jnp.asarray(turned), frame), other, atol=1e-6)


def test_tangent_basis_is_right_handed_also_at_the_poles() -> None:
    x = np.concatenate([random_directions(100), np.eye(3), -np.eye(3)]).astype(np.float32)
    east, north = (np.asarray(axis) for axis in geometry.tangent_basis(jnp.asarray(x)))
    np.testing.assert_allclose(np.cross(x, east), north, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(east, axis=-1), 1, atol=1e-6)
    np.testing.assert_allclose(east[:, 2], 0)
    assert (north[:, 2] >= 0).all()


def test_gradients_of_frames_are_finite_at_the_poles() -> None:
    pole = jnp.array([0.0, 0.0, 1.0])

    def total(x: jax.Array) -> jax.Array:
        east, north = geometry.tangent_basis(x)
        yaw, elevation = geometry.to_angles(x)
        return (east + north + geometry.to_yaw_frame(x, geometry.yaw_frame(x))).sum() + yaw + elevation

    assert np.isfinite(jax.grad(total)(pole)).all()
    assert np.isfinite(jax.grad(lambda x: geometry.normalize(x).sum())(jnp.zeros(3))).all()


def seen_by_hand(yaw: float, elevation: float, point: np.ndarray, half_deg: float) -> bool:
    """Turn the world so that the head looks to +x, then project on the plane x = 1."""
    cos, sin = math.cos(-yaw), math.sin(-yaw)
    x, y, z = cos * point[0] - sin * point[1], sin * point[0] + cos * point[1], point[2]
    cos, sin = math.cos(elevation), math.sin(elevation)
    x, z = cos * x + sin * z, cos * z - sin * x
    bound = math.tan(math.radians(half_deg))
    return x > 0 and abs(y / x) <= bound and abs(z / x) <= bound


def test_field_of_view_is_the_gnomonic_projection() -> None:
    points = random_directions(200, 3)
    heads = [(0.0, 0.0), (2.5, 0.3), (-1.0, -1.2), (3.1, 1.4)]
    directions = geometry.from_angles(*(jnp.asarray(x, jnp.float32) for x in zip(*heads, strict=True)))
    seen = geometry.in_field(directions, jnp.asarray(points))
    expected = [[seen_by_hand(*head, point, 50.0) for point in points] for head in heads]
    np.testing.assert_array_equal(seen, expected)
    assert 0.1 < np.mean(expected) < 0.3  # the field is a fifth of the sphere


@pytest.mark.parametrize("grid", geometry.TILE_GRIDS)
def test_tiles_of_a_turned_head_are_the_turned_tiles(grid: tuple[int, int]) -> None:
    rows, columns = grid
    elevation = jnp.asarray([-1.3, -0.4, 0.1, 0.9], jnp.float32)
    tile = 2 * math.pi / columns
    # Half a lattice step off, so that rounding does not decide about points on the field's border.
    ahead = geometry.tile_mask(geometry.from_angles(jnp.full(4, 0.013, jnp.float32), elevation), grid)
    turned = geometry.tile_mask(geometry.from_angles(jnp.full(4, 0.013 - tile, jnp.float32), elevation), grid)
    ahead, turned = (np.asarray(mask).reshape(4, rows, columns) for mask in (ahead, turned))
    np.testing.assert_array_equal(
        turned, np.roll(ahead, 1, axis=-1)
    )  # right in the world, right in the image


@pytest.mark.parametrize("grid", geometry.TILE_GRIDS)
def test_tiles_hold_whatever_is_surely_in_view_and_little_else(grid: tuple[int, int]) -> None:
    heads = random_directions(40, 5)
    mask = np.asarray(geometry.tile_mask(jnp.asarray(heads), grid))
    centers = geometry.tile_centers(grid)
    seen_centers = np.asarray(geometry.in_field(jnp.asarray(heads), jnp.asarray(centers)))
    assert (mask | ~seen_centers).all()
    # The field's corners are 59.3 degrees from its middle, so no farther point can be in a counted tile.
    cell = np.radians(np.hypot(180 / grid[0], 360 / grid[1]) / 2)
    assert angle64(heads[:, None], centers[None])[mask].max() < np.radians(59.4) + cell
    # Straight up and straight down: the whole row around the pole.
    poles = np.asarray(geometry.tile_mask(jnp.array([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]]), grid))
    assert poles[0].reshape(grid)[0].all()
    assert not poles[0].reshape(grid)[-1].any()
    assert poles[1].reshape(grid)[-1].all()


def test_tile_count_near_the_published_one() -> None:
    """Mean tiles in view on published traces are 10.8, 18.9 and 42.8; heads stay near the horizon."""
    key = np.random.default_rng(0)
    yaw = key.uniform(-math.pi, math.pi, 3000).astype(np.float32)
    elevation = np.clip(key.normal(-0.03, 0.23, 3000), -1.5, 1.5).astype(np.float32)
    heads = geometry.from_angles(jnp.asarray(yaw), jnp.asarray(elevation))
    counts = [np.asarray(geometry.tile_mask(heads, grid)).sum(-1).mean() for grid in geometry.TILE_GRIDS]
    np.testing.assert_allclose(counts, [10.8, 18.9, 42.8], rtol=0.03)


def test_tile_scores_are_those_of_sets() -> None:
    predicted, true = random_directions(30, 1), random_directions(30, 2)
    true[0] = predicted[0]
    true[1] = -predicted[1]
    scores = np.asarray(jax.jit(geometry.tile_scores, static_argnums=2)(predicted, true, (6, 12)))
    fetched, needed = (np.asarray(geometry.tile_mask(jnp.asarray(x), (6, 12))) for x in (predicted, true))
    for row in range(30):
        a, b = (set(np.flatnonzero(mask[row])) for mask in (fetched, needed))
        precision, recall = len(a & b) / len(a), len(a & b) / len(b)
        f1 = 2 * precision * recall / (precision + recall) if a & b else 0.0
        expected = [precision, recall, f1, len(a & b) / len(a | b)]
        np.testing.assert_allclose(scores[row], expected, rtol=1e-6)
    np.testing.assert_array_equal(scores[0], 1)
    np.testing.assert_array_equal(scores[1], 0)
