"""Orientations of a head on the host: angles, Euler angles and quaternions to directions of sight.

NetLLM's Euler angles are intrinsic z-x'-y'' (roll a, pitch b, yaw c) in a left-handed frame with y up:
R = Rz(a) Rx(b) Ry(c), and the viewer looks along f = R e_z. Its two data sets are turned against each other.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

# columns: our x, y, z as signed axes of f (rows of the matrix that takes f to the common frame)
_FRAME_OF = {
    "wu_mmsys17": np.array([[-1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]]),
    "jin_mmsys22": np.array([[1.0, 0, 0], [0, 0, 1.0], [0, 1.0, 0]]),
}
# convention -> (axis of sight in the head, matrix from the world of the convention to the common frame)
_QUATERNION_FRAMES = {
    "unity": (np.array([0.0, 0, 1]), np.array([[0.0, 0, 1], [-1, 0, 0], [0, 1, 0]])),
    "opengl": (np.array([0.0, 0, -1]), np.array([[0.0, 0, -1], [-1, 0, 0], [0, 1, 0]])),
    "ros": (np.array([1.0, 0, 0]), np.eye(3)),
}
QUATERNION_CONVENTIONS = tuple(_QUATERNION_FRAMES)


def direction_of_angles(
    yaw_deg: Float[np.ndarray, "row"], elevation_deg: Float[np.ndarray, "row"]
) -> Float[np.ndarray, "row 3"]:
    """Unit vectors of angles in degrees, yaw positive to the left and elevation positive upwards."""
    yaw, elevation = np.radians(yaw_deg), np.radians(elevation_deg)
    flat = np.cos(elevation)
    return np.stack([flat * np.cos(yaw), flat * np.sin(yaw), np.sin(elevation)], axis=1)


def direction_of_quaternion(
    quaternion: Float[np.ndarray, "row 4"], convention: str
) -> Float[np.ndarray, "row 3"]:
    """Direction of sight of unit quaternions (w, x, y, z) of the head.

    Args:
        quaternion: Orientation of the head in its world.
        convention: "unity" (left-handed, y up, sight along +z), "opengl" (right-handed, y up, sight along -z;
            WebXR too) or "ros" (right-handed, z up, sight along +x).

    Returns:
        Directions in the common frame, of the quaternion's squared norm.
    """
    sight, frame = _QUATERNION_FRAMES[convention]
    w, vector = quaternion[:, :1], quaternion[:, 1:]
    twice = 2 * np.cross(vector, sight[None, :])
    norm2 = np.sum(quaternion**2, axis=1, keepdims=True)
    # v + w t + u x t is the rotation for a unit quaternion; scaled by the squared norm so that an error shows
    rotated = sight[None, :] * norm2 + w * twice + np.cross(vector, twice)
    return rotated @ frame.T


def direction_of_euler(euler: Float[np.ndarray, "row 3"], dataset: str) -> Float[np.ndarray, "row 3"]:
    """Direction of sight of NetLLM's Euler angles.

    Args:
        euler: Roll, pitch, yaw in radians.
        dataset: "wu_mmsys17" or "jin_mmsys22".

    Returns:
        Unit vectors in the common frame.
    """
    return _forward(*euler.T) @ _FRAME_OF[dataset].T


def quaternion_of_euler(euler: Float[np.ndarray, "row 3"]) -> Float[np.ndarray, "row 4"]:
    """Unit quaternions (w, x, y, z) of NetLLM's Euler angles (roll, pitch, yaw in radians)."""
    (ca, cb, cc), (sa, sb, sc) = np.cos(euler.T / 2), np.sin(euler.T / 2)
    return np.stack(
        [
            ca * cb * cc - sa * sb * sc,
            ca * sb * cc - sa * cb * sc,
            ca * cb * sc + sa * sb * cc,
            sa * cb * cc + ca * sb * sc,
        ],
        axis=1,
    )


def euler_of_quaternion(quaternion: Float[np.ndarray, "*any 4"]) -> Float[np.ndarray, "*any 3"]:
    """NetLLM's Euler angles (roll, pitch, yaw in radians) of unit quaternions (w, x, y, z).

    At pitch +-90 degrees, where roll and yaw cannot be told apart, an arbitrary pair of them comes back.
    """
    w, x, y, z = np.moveaxis(quaternion, -1, 0)
    roll = np.arctan2(2 * (w * z - x * y), 1 - 2 * (x * x + z * z))
    pitch = np.arcsin(np.clip(2 * (y * z + w * x), -1, 1))
    yaw = np.arctan2(2 * (w * y - x * z), 1 - 2 * (x * x + y * y))
    return np.stack([roll, pitch, yaw], axis=-1)


def euler_keeping_roll(
    direction: Float[np.ndarray, "*any 3"], last: Float[np.ndarray, "... 3"], dataset: str
) -> Float[np.ndarray, "*any 3"]:
    """NetLLM's Euler angles of a head that looks along ``direction`` and keeps its last roll to the horizon.

    It is the roll about the line of sight that a head keeps. Angle a is not that roll: in Jin et al. the
    front of the video lies where cos(c) = 0 and a and b cannot be told apart; keeping a would turn them at
    random.

    Args:
        direction: Unit vectors in the common frame.
        last: Last observed roll, pitch, yaw in radians, broadcast.
        dataset: "wu_mmsys17" or "jin_mmsys22".

    Returns:
        Roll, pitch, yaw in radians.
    """
    roll, pitch, yaw = np.moveaxis(last, -1, 0)
    up = np.stack([-np.sin(roll) * np.cos(pitch), np.cos(roll) * np.cos(pitch), np.sin(pitch)], axis=-1)
    level_right, level_up = _level(_forward(roll, pitch, yaw))
    sin = -np.sum(up * level_right, axis=-1, keepdims=True)
    cos = np.sum(up * level_up, axis=-1, keepdims=True)
    forward = direction @ _FRAME_OF[dataset]
    level_right, level_up = _level(forward)
    right, up = cos * level_right + sin * level_up, cos * level_up - sin * level_right
    return np.stack(
        [
            np.arctan2(-up[..., 0], up[..., 1]),
            np.arcsin(np.clip(up[..., 2], -1, 1)),
            np.arctan2(-right[..., 2], forward[..., 2]),
        ],
        axis=-1,
    )


def _forward(roll: np.ndarray, pitch: np.ndarray, yaw: np.ndarray) -> np.ndarray:
    """Third column of Rz(roll) Rx(pitch) Ry(yaw)."""
    side, height, depth = np.sin(yaw), -np.sin(pitch) * np.cos(yaw), np.cos(pitch) * np.cos(yaw)
    return np.stack(
        [np.cos(roll) * side - np.sin(roll) * height, np.sin(roll) * side + np.cos(roll) * height, depth],
        axis=-1,
    )


def _level(forward: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Right and up of a head without roll, y being up in the world."""
    flat = np.hypot(forward[..., 0], forward[..., 2])[..., None]
    zero = np.zeros_like(forward[..., 0])
    right = np.stack([forward[..., 2], zero, -forward[..., 0]], axis=-1)
    right = np.where(flat > 1e-9, right / np.maximum(flat, 1e-9), np.array([1.0, 0, 0]))
    return right, np.cross(forward, right)
