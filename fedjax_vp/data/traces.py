"""Head traces on one time grid: the only form in which viewing data enters the simulator.

A *trace* is one session, a user watching a video. Directions are unit vectors with x to the front (the center
of the equirectangular image), y to the left and z up. Sample k of a trace lies at video time
``t0 + k / rate``; windows and video time are always taken from there, never from the index alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

_DTYPES = {
    "direction": np.float32,
    "length": np.int32,
    "t0": np.float64,
    "valid": np.bool_,
    "user": np.int32,
    "video": np.int32,
}
_TIME_SLACK_S = 1e-6  # t0 + k / rate is compared with round numbers such as 6 s


class Source(NamedTuple):
    """What makes the traces of a set that does not store them."""

    make: Callable[[Any, Any], Any]  # pure, for use inside a jit: (key, id) -> directions [time, 3]
    key: Any  # a JAX key
    ids: np.ndarray  # int32 [trace]


@dataclass(frozen=True)
class TraceSet:
    """Sessions of one data set, stacked and padded; host side, NumPy.

    Where a `source` makes the traces, nothing of them is stored: the time axis has no samples, and every
    trace is valid up to its length.

    Attributes:
        name: Name of the data set.
        rate_hz: Samples a second, the same for all traces.
        direction: float32 [trace, time, 3] unit vectors; padded by repeating the last valid sample.
        length: int32 [trace] samples before the padding.
        t0: float64 [trace] video time in seconds of sample 0.
        valid: bool [trace, time]; false in the padding and where the source had nothing to interpolate.
        user: int32 [trace] index into ``user_ids``.
        video: int32 [trace] index into ``video_ids``.
        user_ids: Names of users in natural order ("2" before "10").
        video_ids: Names of videos in natural order.
        labels: int32 [trace] codes of further columns or of ground truth, such as "video_category"; -1 where
            unknown.
        channels: float32 [trace, time, c] further signals, such as "quaternion" (w, x, y, z of the head).
        counts: What the import repaired, skipped or dropped, by reason.
        source: What makes the traces where they are not stored.
    """

    name: str
    rate_hz: float
    direction: np.ndarray
    length: np.ndarray
    t0: np.ndarray
    valid: np.ndarray
    user: np.ndarray
    video: np.ndarray
    user_ids: tuple[str, ...]
    video_ids: tuple[str, ...]
    labels: dict[str, np.ndarray] = field(default_factory=dict)
    channels: dict[str, np.ndarray] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    source: Source | None = None

    def __post_init__(self) -> None:
        """Refuse arrays whose shapes or types disagree.

        Raises:
            ValueError: A field has another shape or dtype than documented.
        """
        shape = self.direction.shape
        if len(shape) != 3 or shape[2] != 3:
            raise ValueError(f"direction must be [trace, time, 3], got {shape}")
        expected = {"direction": shape, "valid": shape[:2]}
        for name, dtype in _DTYPES.items():
            array = getattr(self, name)
            if array.shape != expected.get(name, shape[:1]) or array.dtype != dtype:
                raise ValueError(
                    f"{name} must be {np.dtype(dtype)} {expected.get(name, shape[:1])}, "
                    f"got {array.dtype} {array.shape}"
                )
        for name, codes in self.labels.items():
            if codes.shape != shape[:1]:
                raise ValueError(f"label {name!r} must be [trace], got {codes.shape}")
        for name, channel in self.channels.items():
            if channel.shape[:2] != shape[:2] or channel.ndim != 3:
                raise ValueError(f"channel {name!r} must be [trace, time, c], got {channel.shape}")

    @property
    def num_traces(self) -> int:
        """Number of sessions."""
        return self.direction.shape[0]

    @property
    def num_users(self) -> int:
        """Number of users."""
        return len(self.user_ids)

    @property
    def num_videos(self) -> int:
        """Number of videos."""
        return len(self.video_ids)

    @property
    def duration_s(self) -> float:
        """Video time in seconds of the latest sample of all traces."""
        last = self.t0 + np.maximum(self.length - 1, 0) / self.rate_hz
        return float(last.max(initial=0.0))

    def time_s(self) -> np.ndarray:
        """Video time in seconds of every sample, float64 [trace, time] (running on in the padding)."""
        return self.t0[:, None] + np.arange(self.direction.shape[1])[None, :] / self.rate_hz

    def eligible(self, history: int, horizon: int, start_s: float = 0.0) -> np.ndarray:
        """Windows that exist: all their samples valid, their last observed sample not before ``start_s``.

        Args:
            history: Observed samples, the last of which is ``now``.
            horizon: Future samples.
            start_s: Earliest video time of ``now`` in seconds.

        Returns:
            bool [trace, time] over ``now``: samples now - history + 1 .. now + horizon are all valid.
        """
        traces, length = self.valid.shape
        total = np.zeros((traces, length + 1), np.int32)
        np.cumsum(self.valid, axis=1, out=total[:, 1:])
        mask = np.zeros((traces, length), bool)
        first, last = history - 1, length - horizon  # now runs over first .. last - 1
        if last > first:
            span = history + horizon
            mask[:, first:last] = total[:, span:] - total[:, : length + 1 - span] == span
        return mask & (self.time_s() >= start_s - _TIME_SLACK_S)

    def subset(self, keep: np.ndarray) -> TraceSet:
        """Only the traces that ``keep`` (mask or indices) names; users and videos keep their indices."""
        arrays = {name: getattr(self, name)[keep] for name in _DTYPES}
        labels = {name: codes[keep] for name, codes in self.labels.items()}
        channels = {name: channel[keep] for name, channel in self.channels.items()}
        source = self.source and self.source._replace(ids=self.source.ids[keep])
        return replace(self, **arrays, labels=labels, channels=channels, source=source)


class Session(NamedTuple):
    """One resampled session before stacking.

    ``channels`` maps names to [time, c]; ``labels`` maps names of further columns to this session's value, ""
    where it is unknown.
    """

    user: str
    video: str
    t0: float
    direction: np.ndarray  # [time, 3]
    channels: Mapping[str, np.ndarray] = {}
    labels: Mapping[str, str] = {}


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which "user2" comes before "user10".

    >>> sorted(["10", "b", "2"], key=natural_key)
    ['2', '10', 'b']
    """
    parts = (part for part in re.split(r"(\d+)", text) if part)
    return tuple((0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts)


def natural_order(names: Iterable[str]) -> tuple[str, ...]:
    """Distinct names in natural order."""
    return tuple(sorted(set(names), key=natural_key))


def stack_sessions(
    name: str, rate_hz: float, sessions: Sequence[Session], counts: Mapping[str, int] | None = None
) -> TraceSet:
    """Pad sessions to one length and index their users, videos and labels; traces in order of (user, video).

    Args:
        name: Name of the data set.
        rate_hz: Samples a second of every session.
        sessions: Sessions with at least one sample each, all with the same channels and labels.
        counts: What the import repaired or dropped.

    Returns:
        The stacked traces.

    Raises:
        ValueError: There is no session, or one is empty.
    """
    if not sessions or any(len(session.direction) == 0 for session in sessions):
        raise ValueError(f"{name}: needs at least one session, and a sample in each")
    sessions = sorted(sessions, key=lambda s: (natural_key(s.user), natural_key(s.video)))
    users = natural_order(s.user for s in sessions)
    videos = natural_order(s.video for s in sessions)
    length = np.array([len(s.direction) for s in sessions], np.int32)
    valid = np.arange(length.max())[None, :] < length[:, None]
    label_names = natural_order(key for s in sessions for key in s.labels)
    return TraceSet(
        name=name,
        rate_hz=float(rate_hz),
        direction=_pad([s.direction for s in sessions], int(length.max())),
        length=length,
        t0=np.array([s.t0 for s in sessions], np.float64),
        valid=valid,
        user=_codes([s.user for s in sessions], users),
        video=_codes([s.video for s in sessions], videos),
        user_ids=users,
        video_ids=videos,
        labels={key: _label_codes([s.labels.get(key, "") for s in sessions]) for key in label_names},
        channels={
            key: _pad([s.channels[key] for s in sessions], int(length.max())) for key in sessions[0].channels
        },
        counts=dict(counts or {}),
    )


def _pad(rows: Sequence[np.ndarray], num_samples: int) -> np.ndarray:
    padded = np.empty((len(rows), num_samples, rows[0].shape[1]), np.float32)
    for out, row in zip(padded, rows, strict=True):
        out[: len(row)] = row
        out[len(row) :] = row[-1]
    return padded


def _codes(values: Sequence[str], names: Sequence[str]) -> np.ndarray:
    index_of = {name: index for index, name in enumerate(names)}
    return np.array([index_of[value] for value in values], np.int32)


def _label_codes(values: Sequence[str]) -> np.ndarray:
    """Codes of a label; -1 where a session has none."""
    names = natural_order(value for value in values if value)
    index_of = {"": -1} | {name: index for index, name in enumerate(names)}
    return np.array([index_of[value] for value in values], np.int32)
