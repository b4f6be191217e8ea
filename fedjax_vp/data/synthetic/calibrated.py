"""Head motion calibrated to public traces: every viewer a little different, no hard groups.

A viewer holds a spot and now and then shifts it (Poisson). A shift goes back to the video's *focus*,
where all viewers of the video tend to look at that time, or to a new spot of the viewer's own, a
heavy-tailed distance away. The head follows its spot as a critically damped second-order system, so speed
tells where it is going for some tenths of a second. A session's speed is lognormal with a part of the
user, one of the video and one of its own; it scales the rate of shifts and their size, and how far from
the focus the viewer settles.

`PRESETS` holds constants fitted to statistics of public data sets at 5 Hz: the no-motion error over the
horizon, its median, what extrapolation of the last speed gains, the shares of users and videos in the
variance of log mean speed, and what the mean direction of other viewers of the video is worth 5 s ahead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from fedjax_vp.data.synthetic.latents import LONGEST, SyntheticSession, draw, even, streams, to_normal
from fedjax_vp.geometry import from_angles

_FOCUS_MOVE_S = 1.0  # time in which the focus moves from one place to the next
_SWAY_S = 1.0  # correlation time of a still head's sway
_CENTERING = 0.7  # share of its elevation that a free shift keeps
_MAX_ELEVATION = 1.4


class Motion(NamedTuple):
    """Constants of a preset; angles in degrees."""

    shifts_hz: float  # shifts of the spot a second, in a session of median speed
    rate_power: float  # share of log speed that goes into the rate of shifts; the rest into their size
    tracking_rad_s: float  # natural angular frequency with which the head follows its spot
    attention: float  # probability that a shift goes to the focus
    reach_deg: float  # median size of a free shift, in a session of median speed
    reach_log_sd: float
    focus_deg: float  # standard deviation of the focus about the front, horizontally
    focus_s: float  # time between its places
    spot_deg: float  # deviation of a viewer's spots from the focus, anew at each shift
    flatness: float  # vertical extent of everything relative to horizontal
    sway_deg: float
    user_sd: float  # of log speed
    video_sd: float
    session_sd: float
    home_deg: float  # deviation of a session's spots from the focus, the whole session long
    follow: float  # share of the focus's motion that a viewer follows between shifts


PRESETS: dict[str, Motion] = {
    "jin-like": Motion(
        shifts_hz=0.522,
        rate_power=0.71,
        tracking_rad_s=4.44,
        attention=0.429,
        reach_deg=21.0,
        reach_log_sd=1.13,
        focus_deg=12.3,
        focus_s=2.62,
        spot_deg=9.49,
        flatness=0.321,
        sway_deg=0.39,
        user_sd=0.676,
        video_sd=0.478,
        session_sd=0.63,
        home_deg=15.2,
        follow=0.559,
    ),
    "wu-like": Motion(
        shifts_hz=0.716,
        rate_power=0.559,
        tracking_rad_s=4.77,
        attention=0.429,
        reach_deg=17.1,
        reach_log_sd=1.14,
        focus_deg=8.63,
        focus_s=5.85,
        spot_deg=7.17,
        flatness=0.194,
        sway_deg=0.309,
        user_sd=0.324,
        video_sd=0.317,
        session_sd=0.117,
        home_deg=23.2,
        follow=0.587,
    ),
    "david-like": Motion(
        shifts_hz=1.28,
        rate_power=0.537,
        tracking_rad_s=1.97,
        attention=0.198,
        reach_deg=53.0,
        reach_log_sd=0.59,
        focus_deg=87.6,
        focus_s=3.29,
        spot_deg=63.9,
        flatness=0.783,
        sway_deg=0.935,
        user_sd=0.467,
        video_sd=0.134,
        session_sd=0.458,
        home_deg=12.9,
        follow=0.574,
    ),
}
"""Fitted constants by the data set they resemble."""


@dataclass(frozen=True)
class Synthetic:
    """A full cross of users and videos in the manner of a public data set.

    Attributes:
        preset: The data set whose statistics it has: Jin et al. 2022, Wu et al. 2017 or David et al. 2018.
        users: Number of users.
        videos: Number of videos.
        duration_s: Length of every session.
        rate_hz: Samples a second; the presets are calibrated at 5.
        seed: Of everything drawn here.
        stored: Whether traces are made once and kept, or anew wherever they are used: any number of users.
    """

    kind: Literal["synthetic"] = "synthetic"
    preset: Literal["wu-like", "jin-like", "david-like"] = "jin-like"
    users: int = 24
    videos: int = 6
    duration_s: float = 40.0
    rate_hz: float = 5.0
    seed: int = 0
    stored: bool = True

    def __post_init__(self) -> None:
        """Refuse impossible values.

        Raises:
            ValueError: A number is out of its range, or the preset is unknown.
        """
        if self.preset not in PRESETS:
            raise ValueError(f"dataset.preset is {self.preset!r}: choose one of {', '.join(PRESETS)}")
        for name, most in (("users", 2**31), ("videos", 2**31), *LONGEST.items()):
            if not 0 < getattr(self, name) <= most:
                raise ValueError(f"dataset.{name} is {getattr(self, name)}: give more than 0, at most {most}")
        if self.users * self.videos >= 2**31:
            raise ValueError(f"dataset.users is {self.users}: users * videos must stay below 2^31")

    @property
    def num_samples(self) -> int:
        """Samples of every session."""
        return max(2, round(self.duration_s * self.rate_hz))


class _Head(NamedTuple):
    """State of a viewer; angles as (yaw, elevation) in radians, yaw not wrapped."""

    position: Float[Array, "2"]
    velocity: Float[Array, "2"]
    spot: Float[Array, "2"]  # of its own, or relative to the focus while attending
    attends: Bool[Array, ""]
    held: Float[Array, "2"]  # focus at the last shift
    sway: Float[Array, "2"]


class _Step(NamedTuple):
    """What happens in one sample interval; stacked over time."""

    focus: Float[Array, "*time 2"]
    shifts: Bool[Array, "*time"]
    attends: Bool[Array, "*time"]
    near_focus: Float[Array, "*time 2"]  # spot relative to the focus, if the shift goes there
    away: Float[Array, "*time 2"]  # displacement of the spot, if it does not
    sway: Float[Array, "*time 2"]


def calibrated_session(settings: Synthetic, key: Key[Array, ""], session: Int[Array, ""]) -> SyntheticSession:
    """The session with this id, user * videos + video: a pure function of (key, id).

    Args:
        settings: Preset and sizes; static.
        key: Root key of the federation.
        session: Index of the session.
    """
    motion = PRESETS[settings.preset]
    user, video = session // settings.videos, session % settings.videos
    source = streams(key)
    chance = draw(source.sessions, session, (8, settings.num_samples + 1))  # column 0: of the whole session
    traits = jnp.stack([even(source.shifts[0], user), even(source.shifts[1], video), chance[0, 0]])
    spread = jnp.array([motion.user_sd, motion.video_sd, motion.session_sd])
    log_speed = jnp.sum(spread * to_normal(traits))
    places = to_normal(draw(source.videos, video, (_num_places(settings, motion), 2)))
    steps = _events(settings, log_speed, _focus(settings, places), chance)
    length = jnp.full((), settings.num_samples, jnp.int32)
    none = jnp.zeros((), jnp.int32)
    return SyntheticSession(_watch(motion, 1 / settings.rate_hz, steps), length, user, video, none, none)


def _num_places(settings: Synthetic, motion: Motion) -> int:
    """Places of the focus that cover a video."""
    return math.ceil(settings.duration_s / motion.focus_s) + 2


def _extent(motion: Motion, degrees: float) -> Float[Array, "2"]:
    """Horizontal and vertical extent in radians."""
    return math.radians(degrees) * jnp.array([1.0, motion.flatness], jnp.float32)


def _focus(settings: Synthetic, places: Float[Array, "place 2"]) -> Float[Array, "time 2"]:
    """Where viewers of a video tend to look: rests at `places` in turn, with smooth moves between them."""
    motion = PRESETS[settings.preset]
    places = places * _extent(motion, motion.focus_deg)[None, :]
    time = np.arange(settings.num_samples) / (settings.rate_hz * motion.focus_s)
    index = np.floor(time).astype(np.int32)
    share = np.clip((time - index) * (motion.focus_s / _FOCUS_MOVE_S), 0.0, 1.0)
    share = (share * share * (3 - 2 * share)).astype(np.float32)[:, None]
    return places[index] * (1 - share) + places[index + 1] * share


def _events(
    settings: Synthetic,
    log_speed: Float[Array, ""],
    focus: Float[Array, "time 2"],
    chance: Float[Array, "8 time_and_one"],
) -> _Step:
    """What happens in a session of this speed, from even random numbers."""
    motion, dt_s = PRESETS[settings.preset], 1 / settings.rate_hz
    home = to_normal(chance[1:3, 0]) * _extent(motion, motion.home_deg)
    chance = chance[:, 1:]
    normal = to_normal(chance[3:])
    rate_hz = motion.shifts_hz * jnp.exp(motion.rate_power * log_speed)
    scale = jnp.exp((1 - motion.rate_power) * log_speed)
    turn = 2 * math.pi * chance[2]
    size = scale * jnp.exp(motion.reach_log_sd * normal[0])
    away = size[:, None] * jnp.stack([jnp.cos(turn), jnp.sin(turn)], axis=-1)
    spot = normal[1:3].T * (scale * _extent(motion, motion.spot_deg))[None, :]
    keep = math.exp(-dt_s / _SWAY_S)
    sway = math.radians(motion.sway_deg) * math.sqrt(1 - keep**2) * jnp.exp(log_speed)
    return _Step(
        focus=focus,
        shifts=chance[0] < 1 - jnp.exp(-rate_hz * dt_s),
        attends=chance[1] < motion.attention,
        near_focus=home[None, :] + spot,
        away=away * _extent(motion, motion.reach_deg)[None, :],
        sway=sway * normal[3:5].T,
    )


def _watch(motion: Motion, dt_s: float, steps: _Step) -> Float[Array, "time 3"]:
    """Follow the spot; the exact solution of critical damping within each interval, stable at any rate."""
    decay = math.exp(-motion.tracking_rad_s * dt_s)
    keep = math.exp(-dt_s / _SWAY_S)

    def target(head: _Head, focus: Float[Array, "2"]) -> Float[Array, "2"]:
        seen = motion.follow * focus + (1 - motion.follow) * head.held
        return jnp.where(head.attends, seen + head.spot, head.spot)

    def step(head: _Head, now: _Step) -> tuple[_Head, Float[Array, "2"]]:
        # A turned head goes back to the focus the short way around.
        turns = jnp.round((head.position[0] - now.focus[0]) / (2 * math.pi))
        near_focus = now.near_focus.at[0].add(2 * math.pi * turns)
        free = (target(head, now.focus) + now.away) * jnp.array([1.0, _CENTERING])
        shifted = head._replace(
            spot=jnp.where(now.attends, near_focus, free), attends=now.attends, held=now.focus
        )
        head = jax.tree.map(lambda new, old: jnp.where(now.shifts, new, old), shifted, head)
        goal = target(head, now.focus)
        miss = head.position - goal
        pull = head.velocity + motion.tracking_rad_s * miss
        head = head._replace(
            position=goal + (miss + pull * dt_s) * decay,
            velocity=(head.velocity - motion.tracking_rad_s * dt_s * pull) * decay,
            sway=keep * head.sway + now.sway,
        )
        return head, head.position + head.sway

    start = steps.focus[0] + steps.near_focus[0]
    rest = jnp.zeros(2)
    head = _Head(start, rest, steps.near_focus[0], jnp.ones((), bool), steps.focus[0], rest)
    angles = jax.lax.scan(step, head, steps)[1]
    return from_angles(angles[:, 0], jnp.clip(angles[:, 1], -_MAX_ELEVATION, _MAX_ELEVATION))
