"""Head orientations against SciPy's rotations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from fedjax_vp.data import head

EULER = np.radians(np.random.default_rng(3).uniform([-179, -89, -179], [179, 89, 179], (200, 3)))


def _scipy(euler: np.ndarray) -> Rotation:
    return Rotation.from_euler("ZXY", euler)


@pytest.mark.parametrize(
    ("dataset", "axes"),
    [("wu_mmsys17", ((0, -1), (2, -1), (1, 1))), ("jin_mmsys22", ((0, 1), (2, 1), (1, 1)))],
)
def test_direction_of_euler(dataset: str, axes: tuple[tuple[int, int], ...]) -> None:
    forward = _scipy(EULER).as_matrix()[:, :, 2]
    expected = np.stack([sign * forward[:, axis] for axis, sign in axes], axis=1)
    np.testing.assert_allclose(head.direction_of_euler(EULER, dataset), expected, atol=1e-12)
    back = head.euler_keeping_roll(expected, EULER, dataset)
    np.testing.assert_allclose(back, EULER, atol=1e-6)


def test_the_roll_to_the_horizon_is_kept() -> None:
    """A head turned about the vertical keeps its roll to the horizon, so all its angles are known."""
    for angle in (-2.0, 0.3, 1.0):
        turn = Rotation.from_rotvec([0.0, angle, 0.0])
        turned = (turn * _scipy(EULER)).as_euler("ZXY")
        future = head.direction_of_euler(turned, "jin_mmsys22")
        got = head.euler_keeping_roll(future, EULER, "jin_mmsys22")
        difference = np.angle(np.exp(1j * (got - turned)))
        np.testing.assert_allclose(difference, 0, atol=1e-6)


def test_quaternion_of_euler_and_back() -> None:
    quaternion = head.quaternion_of_euler(EULER)
    np.testing.assert_allclose(np.linalg.norm(quaternion, axis=1), 1)
    same = _scipy(EULER).inv() * Rotation.from_quat(np.roll(quaternion, -1, axis=1))
    assert same.magnitude().max() < 1e-7
    np.testing.assert_allclose(head.euler_of_quaternion(quaternion), EULER, atol=1e-9)


def test_direction_of_angles() -> None:
    got = head.direction_of_angles(np.array([0.0, 90.0, 0.0, 180.0]), np.array([0.0, 0.0, 90.0, -30.0]))
    expected = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [-np.sqrt(3) / 2, 0, -0.5]]
    np.testing.assert_allclose(got, expected, atol=1e-12)


def test_quaternion_conventions_agree_on_left_and_up() -> None:
    """A head turned 30 degrees left, then raised 20 degrees, in each convention's own axes."""
    left, up = np.radians(30), np.radians(20)
    turns = {
        # right-handed z up: yaw about +z is left; raising the nose (+x) is a negative turn about +y
        "ros": Rotation.from_rotvec([0, 0, left]) * Rotation.from_rotvec([0, -up, 0]),
        # right-handed y up: yaw about +y is left; raising the sight (-z) is a positive turn about +x
        "opengl": Rotation.from_rotvec([0, left, 0]) * Rotation.from_rotvec([up, 0, 0]),
        # left-handed y up: the same algebra turns the other way, so left and up are negative angles
        "unity": Rotation.from_rotvec([0, -left, 0]) * Rotation.from_rotvec([-up, 0, 0]),
    }
    expected = head.direction_of_angles(np.array([30.0]), np.array([20.0]))
    for convention, turn in turns.items():
        quaternion = np.roll(turn.as_quat(), 1)[None, :]
        np.testing.assert_allclose(
            head.direction_of_quaternion(quaternion, convention), expected, atol=1e-12, err_msg=convention
        )
        doubled = head.direction_of_quaternion(2 * quaternion, convention)
        np.testing.assert_allclose(doubled, 4 * expected, atol=1e-12)
