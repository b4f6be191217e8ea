"""Directions on the unit sphere: distances, tangent maps, yaw frames, fields of view and tiles.

A direction is a float32 unit vector, +x front, +y left, +z up. Angles are in radians; yaw grows to the left
and is 0 in front, elevation grows upwards. Every function takes any leading axes and is written to be
differentiated: where a derivative does not exist (equal or opposite directions, the poles) it is finite by
a stated convention.
"""

from __future__ import annotations

import math
from functools import cache

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

TILE_GRIDS: tuple[tuple[int, int], ...] = ((4, 8), (6, 12), (10, 20))
"""Usual equirectangular tilings, (rows, columns)."""

TILE_SCORES: tuple[str, ...] = ("precision", "recall", "f1", "iou")
"""Order of the last axis of `tile_scores`."""

FIELD_DEG: tuple[float, float] = (100.0, 100.0)
"""Field of view of a headset: horizontal and vertical opening in degrees."""

_LATTICE_DEG = (
    18.0  # spacing of the points that decide whether a tile meets the field; 2 degrees add 0.1 tile
)


def safe_norm(x: Float[Array, "*batch d"]) -> Float[Array, "*batch"]:
    """Euclidean norm over the last axis with gradient zero, not NaN, at zero."""
    square = jnp.sum(x * x, axis=-1)
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


def normalize(x: Float[Array, "*batch 3"]) -> Float[Array, "*batch 3"]:
    """Scale to unit length; the zero vector becomes front, with gradient zero."""
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    positive = square > 0
    front = jnp.broadcast_to(jnp.array([1.0, 0.0, 0.0], x.dtype), x.shape)
    return jnp.where(positive, x / jnp.sqrt(jnp.where(positive, square, 1.0)), front)


def great_circle(a: Float[Array, "*#batch 3"], b: Float[Array, "*#batch 3"]) -> Float[Array, "*batch"]:
    """Angle between two directions in radians, in [0, pi].

    Kahan's form 2 atan2(|a - b|, |a + b|), accurate at both ends where arccos and arcsin lose half the
    digits. Its gradient has unit length inside and is zero at 0 and pi by convention.
    """
    return 2 * jnp.arctan2(safe_norm(a - b), safe_norm(a + b))


def from_angles(yaw: Float[Array, "*#batch"], elevation: Float[Array, "*#batch"]) -> Float[Array, "*batch 3"]:
    """Direction of a yaw (left +) and an elevation (up +), radians."""
    level = jnp.cos(elevation)
    parts = jnp.broadcast_arrays(level * jnp.cos(yaw), level * jnp.sin(yaw), jnp.sin(elevation))
    return jnp.stack(parts, axis=-1)


def to_angles(direction: Float[Array, "*batch 3"]) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """Yaw in (-pi, pi] and elevation in [-pi/2, pi/2], radians; yaw is 0 at the poles."""
    level = safe_norm(direction[..., :2])
    at_pole = level == 0
    front = jnp.where(at_pole, 1.0, direction[..., 0])
    return jnp.arctan2(direction[..., 1], front), jnp.arctan2(direction[..., 2], level)


def yaw_frame(direction: Float[Array, "*batch 3"]) -> Float[Array, "*batch 2"]:
    """Cosine and sine of a direction's yaw, without computing the angle; (1, 0) at the poles."""
    level = safe_norm(direction[..., :2])[..., None]
    front = jnp.broadcast_to(jnp.array([1.0, 0.0], direction.dtype), (*level.shape[:-1], 2))
    return jnp.where(level > 0, direction[..., :2] / jnp.where(level > 0, level, 1.0), front)


def to_yaw_frame(x: Float[Array, "*#batch 3"], frame: Float[Array, "*#batch 2"]) -> Float[Array, "*batch 3"]:
    """Rotate about +z by minus the frame's yaw: the frame's own direction comes to yaw 0."""
    cos, sin = frame[..., 0], frame[..., 1]
    front, left = x[..., 0], x[..., 1]
    parts = jnp.broadcast_arrays(cos * front + sin * left, cos * left - sin * front, x[..., 2])
    return jnp.stack(parts, axis=-1)


def from_yaw_frame(
    x: Float[Array, "*#batch 3"], frame: Float[Array, "*#batch 2"]
) -> Float[Array, "*batch 3"]:
    """Inverse of `to_yaw_frame`."""
    return to_yaw_frame(
        x, frame * jnp.array([1.0, -1.0], frame.dtype).reshape((1,) * (frame.ndim - 1) + (2,))
    )


def tangent_basis(
    direction: Float[Array, "*batch 3"],
) -> tuple[Float[Array, "*batch 3"], Float[Array, "*batch 3"]]:
    """Unit vectors to the east (growing yaw) and north (growing elevation); at the poles as for yaw 0."""
    frame = yaw_frame(direction)
    cos, sin, up = frame[..., 0], frame[..., 1], direction[..., 2]
    east = jnp.stack([-sin, cos, jnp.zeros_like(cos)], axis=-1)
    north = jnp.stack([-up * cos, -up * sin, safe_norm(direction[..., :2])], axis=-1)
    return east, north


def cos_sinc(square: Float[Array, "*batch"]) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """cos(r) and sin(r) / r from r squared, smooth in it also at zero (series below 0.1 rad)."""
    small = square < 1e-2
    r = jnp.sqrt(jnp.where(small, 1.0, square))
    cos = jnp.where(small, 1 - square / 2 * (1 - square / 12), jnp.cos(r))
    sinc = jnp.where(small, 1 - square / 6 * (1 - square / 20), jnp.sin(r) / r)
    return cos, sinc


def exp_map(base: Float[Array, "*#batch 3"], tangent: Float[Array, "*#batch 3"]) -> Float[Array, "*batch 3"]:
    """Where the great circle that leaves `base` along `tangent` is after |tangent| radians."""
    cos, sinc = cos_sinc(jnp.sum(tangent * tangent, axis=-1))
    return cos[..., None] * base + sinc[..., None] * tangent


def log_map(base: Float[Array, "*#batch 3"], target: Float[Array, "*#batch 3"]) -> Float[Array, "*batch 3"]:
    """Tangent vector at `base` that `exp_map` takes to `target`; its length is their great-circle distance.

    Opposite directions have no unique one: the eastward is returned, with gradient zero.
    """
    base, target = jnp.broadcast_arrays(base, target)
    ahead = jnp.sum(base * target, axis=-1, keepdims=True) > 0
    # Both are exact where target - (base . target) base cancels: near `base`, and near its opposite.
    offset = jnp.where(ahead, target - base, target + base)
    across = offset - jnp.sum(base * offset, axis=-1, keepdims=True) * base
    sine = safe_norm(across)[..., None]
    angle = great_circle(base, target)[..., None]
    tangent = jnp.where(sine > 0, angle / jnp.where(sine > 0, sine, 1.0), 1.0) * across
    return jnp.where((sine == 0) & ~ahead, math.pi * tangent_basis(base)[0], tangent)


def slerp(
    a: Float[Array, "*#batch 3"], b: Float[Array, "*#batch 3"], share: Float[Array, "*#batch"]
) -> Float[Array, "*batch 3"]:
    """Great-circle interpolation: `a` at share 0, `b` at share 1, constant speed between."""
    return normalize(exp_map(a, share[..., None] * log_map(a, b)))


def in_field(
    direction: Float[Array, "*batch 3"],
    points: Float[Array, "point 3"],
    field_deg: tuple[float, float] = FIELD_DEG,
) -> Bool[Array, "*batch point"]:
    """Which points a head without roll sees: gnomonic projection within the field's half openings.

    Args:
        direction: where the heads look.
        points: unit vectors in the world.
        field_deg: horizontal and vertical opening in degrees, both below 180.
    """
    east, north = tangent_basis(direction)
    ahead, left, up = (jnp.einsum("...d,pd->...p", axis, points) for axis in (direction, east, north))
    width, height = (math.tan(math.radians(opening) / 2) for opening in field_deg)
    # Both bounds are non-negative only ahead, so points behind fail without a test of their own.
    return (jnp.abs(left) <= width * ahead) & (jnp.abs(up) <= height * ahead)


@cache
def _lattice(rows: int, columns: int) -> tuple[np.ndarray, int]:
    """Points of an equirectangular lattice that refines the grid, and how many steps it makes in a tile."""
    steps = max(1, math.ceil(max(180.0 / rows, 360.0 / columns) / _LATTICE_DEG - 1e-9))
    elevation = np.pi / 2 - np.pi * np.arange(rows * steps + 1) / (rows * steps)
    yaw = np.pi - 2 * np.pi * np.arange(columns * steps) / (columns * steps)
    level = np.cos(elevation)[:, None]
    up = np.broadcast_to(np.sin(elevation)[:, None], (elevation.size, yaw.size))
    points = np.stack([level * np.cos(yaw), level * np.sin(yaw), up], axis=-1)
    return points.reshape(-1, 3).astype(np.float32), steps


def tile_centers(grid: tuple[int, int]) -> np.ndarray:
    """Directions float32 [tile, 3] of the tiles' centers, rows from the top, columns from the left edge."""
    rows, columns = grid
    elevation = np.pi / 2 - np.pi * (np.arange(rows) + 0.5) / rows
    yaw = np.pi - 2 * np.pi * (np.arange(columns) + 0.5) / columns
    elevation, yaw = (x.ravel() for x in np.meshgrid(elevation, yaw, indexing="ij"))
    level = np.cos(elevation)
    return np.stack([level * np.cos(yaw), level * np.sin(yaw), np.sin(elevation)], axis=-1).astype(np.float32)


def tile_mask(
    direction: Float[Array, "*batch 3"], grid: tuple[int, int], field_deg: tuple[float, float] = FIELD_DEG
) -> Bool[Array, "*batch tile"]:
    """Tiles of an equirectangular (rows, columns) grid that the field of view meets.

    A tile counts when any point of a lattice of at most 18 degrees, tile borders included, is in the field:
    what a player must fetch. Rows run from the top, columns from the image's left edge (yaw 180 degrees) to
    the right.
    """
    rows, columns = grid
    points, steps = _lattice(rows, columns)
    seen = in_field(direction, jnp.asarray(points), field_deg)
    lead = seen.shape[:-1]
    seen = seen.reshape(*lead, rows * steps + 1, columns, steps)
    # A tile owns its left border; its right border is the left border of the next, around the sphere.
    seen = seen.any(axis=-1) | jnp.roll(seen[..., 0], -1, axis=-1)
    inner = seen[..., :-1, :].reshape(*lead, rows, steps, columns).any(axis=-2)
    return (inner | seen[..., steps::steps, :]).reshape(*lead, rows * columns)


def tile_scores(
    predicted: Float[Array, "*batch 3"],
    true: Float[Array, "*batch 3"],
    grid: tuple[int, int],
    field_deg: tuple[float, float] = FIELD_DEG,
) -> Float[Array, "*batch 4"]:
    """Precision, recall, F1 and intersection over union of predicted against true tiles (`TILE_SCORES`)."""
    fetched, needed = tile_mask(predicted, grid, field_deg), tile_mask(true, grid, field_deg)
    both = jnp.sum(fetched & needed, axis=-1, dtype=jnp.float32)
    num_fetched = jnp.sum(fetched, axis=-1, dtype=jnp.float32)
    num_needed = jnp.sum(needed, axis=-1, dtype=jnp.float32)
    # The lattice is denser than the field, so no mask is empty.
    return jnp.stack(
        [
            both / num_fetched,
            both / num_needed,
            2 * both / (num_fetched + num_needed),
            both / (num_fetched + num_needed - both),
        ],
        axis=-1,
    )
