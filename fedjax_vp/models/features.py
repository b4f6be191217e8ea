"""What a learned model sees: the past turned to the last yaw, and an optional context.

The context can hold the absolute yaw, an encoding of the video time, and a table of directions by video time
that belongs to whichever level owns the parameter `video_table`: where the viewers of this video look at that
second. The table holds vectors of the world and is turned into the viewer's frame before the network sees it,
so a model with the table alone is equivariant to rotations about the vertical axis: a turned video needs a
turned table and no other weights. A table of zeros says "unknown video".

The crowd says the same without being trained: how many others have watched this half second, and the sum of
their directions (`federated/crowd.py`). It is read between its bins, as

    sum / (count + PRIOR),                                                                      (1)

a vector whose length says how much they agree, and how many they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fedjax_vp import geometry

VIDEO_TABLE = "video_table"
"""Name of the table's leaf, [bin, vector, 3]."""

VIDEO_CROWD = "video_crowd"
"""Name of the crowd's leaf, [bin, 4]: viewers, and the sum of their directions."""

CROWD_BIN_S = 0.5
CROWD_PRIOR = 2.0  # viewers who would look nowhere, in (1)
CROWD_SCALE = 2.0  # brings the crowd's vectors near unit variance
NUM_PERIODS = 4  # of the video-time encoding: the duration and its half, quarter and eighth
DAMPING_S = 0.3  # time constant of head movement: the best at 1 s on slow traces, near it on fast ones
AWAY_SCALE = 3.0  # the same for the way from earlier samples to the last
STEP_SCALE = 10.0  # brings movements between samples (0.01 to 0.3 rad at 5 Hz) near unit variance


class Inputs(NamedTuple):
    """A batch of windows."""

    past: Float[Array, "window history 3"]  # unit vectors, oldest first, last = now
    time: Float[Array, "window"]  # video time (s) of the last observed sample


class WindowShape(NamedTuple):
    """Sizes a model is built for."""

    history: int  # observed samples, the present one included
    horizon: int  # predicted samples
    rate_hz: float
    duration_s: float  # of the longest video: sizes the table by video time


class View(NamedTuple):
    """A batch of windows in the yaw frames of their last observed directions."""

    past: Float[Array, "window history 3"]
    time: Float[Array, "window"]  # as in `Inputs`
    frame: Float[Array, "window 2"]  # cos, sin of the last yaw


class FeatureMap(NamedTuple):
    """Features of a stated window shape."""

    num_context: int
    leaves: frozenset[str]  # parameters the features own
    init: Callable[[], dict[str, Array]]
    context: Callable[[dict[str, Array], View], Float[Array, "window c"]]


@dataclass(frozen=True)
class Features:
    """What a learned model sees beside the past in its yaw frame, and what its displacements start from."""

    yaw: bool = False  # cosine and sine of the absolute yaw
    time: bool = False  # encoding of the video time
    table: int = 0  # vectors a bin in the table by video time; 0: no table
    table_at_s: tuple[float, ...] = (1.0, 3.0, 5.0)  # the table is read so far ahead of now
    table_bin_s: float = 1.0
    crowd: bool = False  # where others looked, read at the same times as the table; counted, not trained
    velocity: bool = False  # learn what to add to the damped velocity instead of to no motion

    def __post_init__(self) -> None:
        if self.table < 0:
            raise ValueError(f"features.table is {self.table}: give a number of vectors, or 0 for no table")
        if (self.table or self.crowd) and not (
            self.table_at_s and all(math.isfinite(at) and at >= 0 for at in self.table_at_s)
        ):
            at_s = list(self.table_at_s)
            raise ValueError(f"features.table_at_s is {at_s}: give times ahead in seconds, such as [1, 3, 5]")
        if not (math.isfinite(self.table_bin_s) and self.table_bin_s > 0):
            raise ValueError(f"features.table_bin_s is {self.table_bin_s}: give a positive number of seconds")

    def num_bins(self, shape: WindowShape, bin_s: float) -> int:
        """Bins of the table or the crowd: the longest video and the farthest look ahead."""
        return math.ceil((shape.duration_s + max(0.0, *self.table_at_s)) / bin_s) + 1

    def build(self, shape: WindowShape) -> FeatureMap:
        """Pure functions of these features."""
        num_table = len(self.table_at_s) * (self.table + self.crowd) * 3
        num_context = 2 * self.yaw + (2 * NUM_PERIODS + 1) * self.time + num_table
        shapes = {}
        if self.table:
            shapes[VIDEO_TABLE] = (self.num_bins(shape, self.table_bin_s), self.table, 3)
        if self.crowd:
            shapes[VIDEO_CROWD] = (self.num_bins(shape, CROWD_BIN_S), 4)

        def init() -> dict[str, Array]:
            return {name: jnp.zeros(size, jnp.float32) for name, size in shapes.items()}

        def context(params: dict[str, Array], view: View) -> Float[Array, "window c"]:
            found = [jnp.zeros((view.frame.shape[0], 0), view.frame.dtype)]
            if self.yaw:
                found.append(view.frame)
            if self.time:
                found.append(encode_time(view.time, shape.duration_s))
            if self.table:
                found.append(_read_table(params[VIDEO_TABLE], view.time, view.frame, self))
            if self.crowd:
                found.append(_read_crowd(params[VIDEO_CROWD], view.time, view.frame, self))
            return jnp.concatenate(found, axis=-1)

        return FeatureMap(num_context, frozenset(shapes), init, context)


def view_of(inputs: Inputs) -> View:
    """What a learned model sees of the windows themselves."""
    frame = geometry.yaw_frame(inputs.past[:, -1])
    return View(geometry.to_yaw_frame(inputs.past, frame[:, None]), inputs.time, frame)


def reach_s(shape: WindowShape, damping_s: float | None = DAMPING_S) -> np.ndarray:
    """Seconds of undamped movement that each future sample stands for, float32 [horizon].

    A movement that dies away with time constant T has gone v T (1 - exp(-t / T)) after t seconds.
    """
    ahead = np.arange(1, shape.horizon + 1) / shape.rate_hz
    if damping_s is not None and np.isfinite(damping_s):
        ahead = -damping_s * np.expm1(-ahead / damping_s)
    return ahead.astype(np.float32)


def steps_of(past: Float[Array, "window history 3"]) -> Float[Array, "window step 3"]:
    """Movements between the observed samples, oldest first, brought near unit variance.

    They say the same as the positions but are far better conditioned: neighboring positions differ by a few
    hundredths, and what they differ by is all that short horizons need. SGD gains the most.
    """
    return STEP_SCALE * (past[:, 1:] - past[:, :-1])


def posture_of(past: Float[Array, "window history 3"]) -> Float[Array, "window 2"]:
    """Cosine (less 1) and sine of the last elevation: all that the yaw frame leaves of the last direction."""
    last = past[:, -1]
    return jnp.stack([last[:, 0] - 1, last[:, 2]], axis=-1)


def flat_past(past: Float[Array, "window history 3"]) -> Float[Array, "window d"]:
    """The whole past as one vector: steps and posture."""
    steps = steps_of(past).reshape(past.shape[0], -1)
    return jnp.concatenate([steps, posture_of(past)], axis=-1)


def tokens_of(past: Float[Array, "window history 3"]) -> Float[Array, "window history 6"]:
    """What sequence models read at each sample: the movement that led there and the way from there to now."""
    moves = jnp.pad(steps_of(past), ((0, 0), (1, 0), (0, 0)))
    return jnp.concatenate([moves, AWAY_SCALE * (past[:, -1:] - past)], axis=-1)


def encode_time(time: Float[Array, "window"], duration_s: float) -> Float[Array, "window c"]:
    """Video time as a share of the duration, and cosines and sines of halving periods."""
    share = time[:, None] / duration_s
    phase = share * (2 * math.pi * 2.0 ** jnp.arange(NUM_PERIODS))[None, :]
    return jnp.concatenate([share, jnp.cos(phase), jnp.sin(phase)], axis=-1)


def _read_table(
    table: Float[Array, "bin vector 3"],
    time: Float[Array, "window"],
    frame: Float[Array, "window 2"],
    features: Features,
) -> Float[Array, "window c"]:
    ahead = time[:, None] + jnp.array(features.table_at_s, jnp.float32)[None, :]
    # The margin keeps 12.999999 s, which is 13 s on a float32 clock, in the bin of 13 s.
    rows = table.at[jnp.floor(ahead / features.table_bin_s + 1e-4).astype(jnp.int32)].get(mode="clip")
    return geometry.to_yaw_frame(rows, frame[:, None, None]).reshape(time.shape[0], -1)


def _read_crowd(
    crowd: Float[Array, "bin 4"],
    time: Float[Array, "window"],
    frame: Float[Array, "window 2"],
    features: Features,
) -> Float[Array, "window c"]:
    """(1) in the viewer's frame, linear between the middles of the bins."""
    ahead = time[:, None] + jnp.array(features.table_at_s, jnp.float32)[None, :]
    place = jnp.maximum(ahead / CROWD_BIN_S - 0.5, 0.0)
    before = jnp.floor(place)
    later, index = (place - before)[..., None], before.astype(jnp.int32)
    crowd = jax.lax.stop_gradient(crowd)
    rows = (1 - later) * crowd.at[index].get(mode="clip") + later * crowd.at[index + 1].get(mode="clip")
    mean = CROWD_SCALE * rows[..., 1:] / (jnp.maximum(rows[..., :1], 0.0) + CROWD_PRIOR)
    return geometry.to_yaw_frame(mean, frame[:, None]).reshape(time.shape[0], -1)
