"""Planted groups: a known tree of categories whose members differ in how the future follows from the past.

A viewer makes *moves* at random times, in a random direction and of random size. Every movement, an answer
included, is answered 1.8 s later by itself times the *response* f of the session's group, a complex number on
east + i north:

    velocity(t) = moves(t) + 0.9 f velocity(t - 1.8 s)
    f = (1 + distance * exp(2 pi i g / G) + spread * (e_video + e_user)) / (1 + distance)

with g = video_category * user_categories + user_category of G = video_categories * user_categories. With
``distance`` 0 every group goes on straight; as it grows, responses spread evenly around a circle (on, to the
left, back, to the right), the distance between groups growing as distance / (1 + distance).

Two seconds of history hardly ever hold a movement together with its answer, so the past does not tell the
group: one model for all can only predict the mean response, a model of the group predicts all but new moves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from fedjax_vp.data.synthetic.latents import (
    LONGEST,
    SyntheticSession,
    draw,
    even_category,
    streams,
    to_normal,
)
from fedjax_vp.geometry import from_angles

_MOVE_S = 0.6  # duration of a move
_ECHO_S = 1.8  # from a movement to its answer
_ECHO = 0.9  # size of the answer at a response of 1; below 1, or the answers would never die out
_MOVES_HZ = 0.3
_SIZE_DEG = 8.0
_SIZE_LOG_SD = 0.4
_FLATNESS = 0.6  # vertical size of moves relative to horizontal
_HOMING_S = 15.0  # time constant with which elevation returns to the horizon
_SWAY_DEG = 0.15
_MAX_ELEVATION = 1.2


@dataclass(frozen=True)
class Planted:
    """Planted groups; the dials of imbalance, scarcity and heterogeneity.

    Attributes:
        users: Number of users.
        videos: Number of videos.
        duration_s: Length of the longest sessions.
        rate_hz: Samples a second.
        seed: Of everything drawn here.
        video_categories: Groups of videos.
        user_categories: Groups of users.
        nested: A user has a category for each video (user category within the video) instead of one.
        distance: Distance between groups: 0 none, 1 clear, large far apart.
        spread: Deviation of each user and of each video from its group.
        sessions_power: User r (from 0) has a share (r + 1)^-power of the videos; 0: everyone has all.
        duration_power: Sessions last duration_s * q^power, q even in (0, 1); 0: all equally long.
        min_duration_s: Shortest session.
        scarcity: Share of every user's sessions taken away; at least one stays.
        iid: Deal the same sessions of each video at random to the users that watched it.
        stored: Whether traces are made once and kept, or anew wherever they are used: any number of users.
    """

    kind: Literal["planted"] = "planted"
    users: int = 32
    videos: int = 8
    duration_s: float = 40.0
    rate_hz: float = 5.0
    seed: int = 0
    video_categories: int = 2
    user_categories: int = 2
    nested: bool = False
    distance: float = 4.0
    spread: float = 0.1
    sessions_power: float = 0.0
    duration_power: float = 0.0
    min_duration_s: float = 14.0
    scarcity: float = 0.0
    iid: bool = False
    stored: bool = True

    def __post_init__(self) -> None:
        """Refuse impossible values.

        Raises:
            ValueError: A number is out of its range.
        """
        for name in ("users", "videos", "video_categories", "user_categories"):
            advice = "give at least 1 and less than 2^31"
            _require(1 <= getattr(self, name) < 2**31, name, getattr(self, name), advice)
        for name, most in (*LONGEST.items(), ("min_duration_s", LONGEST["duration_s"])):
            advice = f"give more than 0, at most {most}"
            _require(0 < getattr(self, name) <= most, name, getattr(self, name), advice)
        for name in ("distance", "spread", "sessions_power", "duration_power"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "give 0 or more")
        _require(0 <= self.scarcity < 1, "scarcity", self.scarcity, "give a share in [0, 1)")
        _require(self.users * self.videos < 2**31, "users", self.users, "users * videos must stay below 2^31")

    @property
    def num_samples(self) -> int:
        """Samples of the longest session."""
        return max(2, round(self.duration_s * self.rate_hz))


def _require(condition: bool, name: str, value: object, advice: str) -> None:
    if not condition:
        raise ValueError(f"dataset.{name} is {value}: {advice}")


def sessions_of_users(settings: Planted) -> np.ndarray:
    """Number of sessions int64 [user]; user u has the session ids u * videos + 0 .. sessions - 1."""
    rank = np.arange(1, settings.users + 1, dtype=np.float64)
    share = (1 - settings.scarcity) * rank**-settings.sessions_power
    return np.maximum(1, np.rint(settings.videos * share)).astype(np.int64)


def planted_session(settings: Planted, key: Key[Array, ""], session: Int[Array, ""]) -> SyntheticSession:
    """The session with this id: a pure function of (key, id).

    Args:
        settings: Sizes and dials; static.
        key: Root key of the federation.
        session: user * videos + slot. The slot names the user's videos in an order of its own, so that users
            with few sessions do not all watch the first videos.
    """
    source = streams(key)
    user = session // settings.videos
    of_user = draw(source.users, user, (3,))
    turn = jnp.minimum((of_user[2] * settings.videos).astype(jnp.int32), settings.videos - 1)
    video = (session % settings.videos + turn) % settings.videos
    of_video = draw(source.videos, video, (3,))
    shift = source.shifts[0]
    if settings.nested:
        shift = shift + (of_video[2] * 2.0**32).astype(jnp.uint32)
    user_category = even_category(shift, user, settings.user_categories)
    video_category = even_category(source.shifts[1], video, settings.video_categories)
    group = video_category * settings.user_categories + user_category
    own = to_normal(of_user[:2]) + to_normal(of_video[:2])
    chance = draw(source.sessions, session, (5, settings.num_samples + 1))  # column 0: of the whole session
    length = _length(settings, chance[0, 0])
    direction = _walk(settings, chance, _response(settings, group, own))
    index = jnp.minimum(jnp.arange(settings.num_samples), length - 1)
    return SyntheticSession(direction[index], length, user, video, user_category, video_category)


def _response(settings: Planted, group: Int[Array, ""], own: Float[Array, "2"]) -> Float[Array, "2"]:
    """The group's answer to a move, real and imaginary part of a factor on its displacement."""
    groups = settings.video_categories * settings.user_categories
    angle = 2 * math.pi / groups * group.astype(jnp.float32)
    planted = settings.distance * jnp.stack([jnp.cos(angle), jnp.sin(angle)])
    response = (jnp.array([1.0, 0.0]) + planted + settings.spread * own) / (1 + settings.distance)
    return response / jnp.maximum(1.0, jnp.linalg.norm(response))  # longer, answers would grow for ever


def _length(settings: Planted, chance: Float[Array, ""]) -> Int[Array, ""]:
    """Samples of a session: a power of an even draw, not below the shortest."""
    samples = jnp.rint(settings.num_samples * chance**settings.duration_power).astype(jnp.int32)
    shortest = max(1, round(settings.min_duration_s * settings.rate_hz))
    return jnp.clip(samples, min(shortest, settings.num_samples), settings.num_samples)


def _moves(rate_hz: float, impulses: Float[Array, "2 time"]) -> Float[Array, "2 time"]:
    """Movement in each sample interval, of moves that start at `impulses`: a causal convolution."""
    s = np.clip(np.arange(math.ceil(_MOVE_S * rate_hz) + 1) / (_MOVE_S * rate_hz), 0, 1)
    shares = np.diff(s**3 * (10 - 15 * s + 6 * s**2)).astype(np.float32)  # minimum jerk
    padded = jnp.pad(impulses, ((0, 0), (len(shares) - 1, 0)))
    parts = [share * padded[:, i : i + impulses.shape[1]] for i, share in enumerate(shares[::-1])]
    return jnp.sum(jnp.stack(parts), axis=0)


def _echoes(
    rate_hz: float, moves: Float[Array, "2 time"], response: Float[Array, "2"]
) -> Float[Array, "2 time"]:
    """Add to the moves the answer to everything that was moved one delay before."""
    num_samples, delay = moves.shape[1], max(1, round(_ECHO_S * rate_hz))
    num_blocks = -(-num_samples // delay)
    padded = jnp.pad(moves, ((0, 0), (0, num_blocks * delay - num_samples)))
    blocks = padded.reshape(2, num_blocks, delay).swapaxes(0, 1)

    def step(
        before: Float[Array, "2 delay"], moved: Float[Array, "2 delay"]
    ) -> tuple[Float[Array, "2 delay"], Float[Array, "2 delay"]]:
        east = response[0] * before[0] - response[1] * before[1]
        north = response[0] * before[1] + response[1] * before[0]
        now = moved + _ECHO * jnp.stack([east, north])
        return now, now

    _, total = jax.lax.scan(step, jnp.zeros((2, delay)), blocks)
    return total.swapaxes(0, 1).reshape(2, -1)[:, :num_samples]


def _walk(
    settings: Planted, chance: Float[Array, "5 time_and_one"], response: Float[Array, "2"]
) -> Float[Array, "time 3"]:
    """Directions of a viewer who answers its own random moves with `response`; from even random numbers."""
    rate_hz = settings.rate_hz
    start = 2 * math.pi * chance[1, 0] - math.pi
    chance = chance[:, 1:]
    size = math.radians(_SIZE_DEG) * jnp.exp(_SIZE_LOG_SD * to_normal(chance[1]))
    size = jnp.where(chance[0] < 1 - math.exp(-_MOVES_HZ / rate_hz), size, 0.0)
    angle = 2 * math.pi * chance[2]
    move = jnp.stack([size * jnp.cos(angle), _FLATNESS * size * jnp.sin(angle)])
    velocity = _echoes(rate_hz, _moves(rate_hz, move), response)
    keep = math.exp(-1 / (_HOMING_S * rate_hz))

    def step(at: Float[Array, "2"], by: Float[Array, "2"]) -> tuple[Float[Array, "2"], Float[Array, "2"]]:
        elevation = jnp.clip(keep * at[1] + by[1], -_MAX_ELEVATION, _MAX_ELEVATION)
        at = jnp.stack([at[0] + by[0] / jnp.cos(elevation), elevation])
        return at, at

    angles = jax.lax.scan(step, jnp.stack([start, jnp.zeros(())]), velocity.T)[1]
    angles = angles + math.radians(_SWAY_DEG) * to_normal(chance[3:]).T
    return from_angles(angles[:, 0], angles[:, 1])
