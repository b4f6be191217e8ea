"""From the rows of one published session to samples on the common time grid.

Rows are checked first; every complaint names the file, the row and the reason. Then directions are
interpolated along great circles at the video times k / rate (Shoemake, "Animating rotation with quaternion
curves", 1985).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from fedjax_vp.data.traces import Session
from fedjax_vp.errors import UserError

NORM_TOLERANCE = 1e-2  # further off is not rounding but something else than a direction
LONGEST_S = 1e5  # of video time: past it, float32 seconds are too coarse for a clock
_GRID_SLACK = 1e-3  # of a step: times stored in float32 still meet the grid


class BadTrace(UserError):
    """One session that cannot be used; ``reason`` is the key under which it is counted when skipped."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Rules:
    """What an import accepts as it is and what it mends.

    Attributes:
        rate_hz: Samples a second of the result.
        max_hole_s: Longest time between neighbouring rows that is interpolated.
        mend_order: Drop rows whose time does not pass all earlier ones, instead of refusing the session.
        mend_holes: Keep the piece between holes that has most rows, instead of refusing the session.
        mend_rows: Drop rows that are not finite and normalize any vector, instead of refusing the session.
        start_slack_s: A session starting this little after a grid point is held to start on it (a recording
            whose first row lies some milliseconds after the start of the video).
    """

    rate_hz: float = 5.0
    max_hole_s: float = 1.5
    mend_order: bool = False
    mend_holes: bool = False
    mend_rows: bool = False
    start_slack_s: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a rate that is no rate.

        Raises:
            ValueError: ``rate_hz`` is not within (0, 1000].
        """
        if not 0 < self.rate_hz <= 1000:
            raise ValueError(f"rate_hz must lie in (0, 1000], got {self.rate_hz:g}")


class RawSession(NamedTuple):
    """The rows of one session as published, directions already in the common frame."""

    user: str
    video: str
    source: str  # file, for messages
    row: np.ndarray  # int [row] number of each row in the file
    time_s: np.ndarray  # [row] video time
    direction: np.ndarray  # [row, 3]
    # name -> [row, c]; "quaternion" is interpolated as a rotation, "euler" taken from the nearest row
    channels: Mapping[str, np.ndarray] = {}
    labels: Mapping[str, str] = {}


def resample(raw: RawSession, rules: Rules, counts: Counter[str]) -> Session:
    """Check one session and put it on the grid.

    Args:
        raw: Rows as published.
        rules: What to accept and what to mend.
        counts: Takes note of what was mended.

    Returns:
        Unit directions at video times t0 + k / rate.

    Raises:
        BadTrace: The session breaks a rule that is not to be mended.
    """
    raw = _finite_rows(raw, rules, counts)
    raw = _unit_rows(raw, rules, counts)
    raw = _ordered_rows(raw, rules, counts)
    raw = _longest_piece(raw, rules, counts)
    first = int(np.ceil((raw.time_s[0] - rules.start_slack_s) * rules.rate_hz - _GRID_SLACK))
    first = max(first, 0)
    last = int(np.floor(raw.time_s[-1] * rules.rate_hz + _GRID_SLACK))
    if last <= first:
        span = raw.time_s[-1] - raw.time_s[0]
        raise _bad(
            raw, 0, "too_short", f"too short: {span:.3g} s hold fewer than 2 samples at {rules.rate_hz:g} Hz"
        )
    grid_s = np.arange(first, last + 1) / rules.rate_hz
    channels = {name: _channel_at(name, raw.time_s, values, grid_s) for name, values in raw.channels.items()}
    direction = slerp_at(raw.time_s, raw.direction, grid_s)
    return Session(raw.user, raw.video, first / rules.rate_hz, direction, channels, raw.labels)


def slerp_at(
    time_s: Float[np.ndarray, "row"], unit: Float[np.ndarray, "row c"], query_s: Float[np.ndarray, "sample"]
) -> Float[np.ndarray, "sample c"]:
    """Unit vectors at other times: great-circle interpolation between neighboring rows, held at the ends.

    Args:
        time_s: Strictly increasing times of the rows, at least two.
        unit: Unit vector of each row. Between opposite vectors, where no way is shortest, the nearer is held.
        query_s: Times to read.

    Returns:
        Unit vectors at ``query_s``.
    """
    before = np.clip(np.searchsorted(time_s, query_s, side="right") - 1, 0, len(time_s) - 2)
    step = time_s[before + 1] - time_s[before]
    share = np.clip((query_s - time_s[before]) / step, 0.0, 1.0)[:, None]
    start, end = unit[before], unit[before + 1]
    angle = 2 * np.arctan2(np.linalg.norm(start - end, axis=1), np.linalg.norm(start + end, axis=1))[:, None]
    share = np.where(angle > np.pi - 1e-6, np.round(share), share)
    small = angle < 1e-6
    safe = np.where(small | (angle > np.pi - 1e-6), 1.0, angle)
    near = np.where(small, 1 - share, np.sin((1 - share) * safe) / np.sin(safe))
    far = np.where(small, share, np.sin(share * safe) / np.sin(safe))
    mixed = near * start + far * end
    return mixed / np.linalg.norm(mixed, axis=1, keepdims=True)


def _channel_at(name: str, time_s: np.ndarray, values: np.ndarray, query_s: np.ndarray) -> np.ndarray:
    if name == "quaternion":
        return slerp_at(time_s, _continuous(values), query_s)
    if name == "euler":
        middle = (time_s[1:] + time_s[:-1]) / 2
        return values[np.searchsorted(middle, query_s)]
    return np.stack([np.interp(query_s, time_s, column) for column in values.T], 1)


def great_circle_deg(
    a: Float[np.ndarray, "*any 3"], b: Float[np.ndarray, "*any 3"]
) -> Float[np.ndarray, "*any"]:
    """Angle in degrees between unit vectors, accurate over [0, 180]."""
    return np.degrees(2 * np.arctan2(np.linalg.norm(a - b, axis=-1), np.linalg.norm(a + b, axis=-1)))


def _bad(raw: RawSession, index: int, reason: str, what: str) -> BadTrace:
    return BadTrace(
        reason, f"{raw.source}: row {raw.row[index]} (user {raw.user}, video {raw.video}): {what}"
    )


def _take(raw: RawSession, keep: np.ndarray | slice) -> RawSession:
    channels = {name: values[keep] for name, values in raw.channels.items()}
    return raw._replace(
        row=raw.row[keep], time_s=raw.time_s[keep], direction=raw.direction[keep], channels=channels
    )


def _finite_rows(raw: RawSession, rules: Rules, counts: Counter[str]) -> RawSession:
    if len(raw.time_s) == 0:
        raise BadTrace("too_short", f"{raw.source}: no rows (user {raw.user}, video {raw.video})")
    columns = [raw.time_s[:, None], raw.direction, *raw.channels.values()]
    broken = np.asarray(~np.isfinite(np.concatenate(columns, axis=1)).all(axis=1))
    if broken.any() and not rules.mend_rows:
        raise _bad(raw, int(broken.argmax()), "not_finite", "a value is missing, NaN or infinite")
    counts["rows_not_finite"] += int(broken.sum())
    raw = _take(raw, ~broken)
    if len(raw.time_s) < 2:
        raise BadTrace(
            "too_short",
            f"{raw.source}: too short: {len(raw.time_s)} usable row(s) "
            f"(user {raw.user}, video {raw.video}), at least 2 are needed",
        )
    if raw.time_s.min() < 0:
        raise _bad(raw, int(raw.time_s.argmin()), "negative_time", "video time is negative")
    if raw.time_s.max() > LONGEST_S:
        what = f"video time {raw.time_s.max():.6g} s is beyond any video: give seconds from its start"
        raise _bad(raw, int(raw.time_s.argmax()), "late_time", what)
    return raw


def _unit_rows(raw: RawSession, rules: Rules, counts: Counter[str]) -> RawSession:
    norm = np.linalg.norm(raw.direction, axis=1)
    off = np.abs(norm - 1) > NORM_TOLERANCE
    zero = norm < 1e-6
    if off.any() and (not rules.mend_rows or zero.any()):
        index = int((zero if rules.mend_rows else off).argmax())
        raise _bad(raw, index, "not_unit", f"the direction has length {norm[index]:.4g}, not 1")
    counts["rows_normalized"] += int(off.sum())
    return raw._replace(direction=raw.direction / norm[:, None])


def _ordered_rows(raw: RawSession, rules: Rules, counts: Counter[str]) -> RawSession:
    latest = np.maximum.accumulate(raw.time_s)
    late = np.concatenate([[False], raw.time_s[1:] <= latest[:-1]])
    if not late.any():
        return raw
    if not rules.mend_order:
        index = int(late.argmax())
        now, before = raw.time_s[index], raw.time_s[index - 1]
        if now <= raw.time_s[0] and index > 1:
            raise _bad(raw, index, "duplicate", "time starts again: this (user, video) is in the file twice")
        what = "is the same as in the row before" if now == before else f"goes back from {before:g} s"
        raise _bad(raw, index, "time_order", f"time {now:g} s {what}")
    counts["rows_out_of_order"] += int(late.sum())
    counts["traces_out_of_order"] += 1
    return _take(raw, ~late)


def _longest_piece(raw: RawSession, rules: Rules, counts: Counter[str]) -> RawSession:
    """The rows between two holes of which there are most: a thinned-out stretch is not what was recorded."""
    if len(raw.time_s) < 2:
        raise _bad(raw, 0, "too_short", "too short: 1 usable row, at least 2 are needed")
    step = np.diff(raw.time_s)
    hole = np.flatnonzero(step > rules.max_hole_s)
    if not len(hole):
        return raw
    if not rules.mend_holes:
        index = int(hole[0])
        raise _bad(
            raw,
            index + 1,
            "hole",
            f"a hole of {step[index]:.3g} s before this row, more than {rules.max_hole_s:g} s",
        )
    edges: Int[np.ndarray, "edge"] = np.concatenate([[0], hole + 1, [len(raw.time_s)]])
    longest = int(np.diff(edges).argmax())
    kept = slice(int(edges[longest]), int(edges[longest + 1]))
    counts["holes"] += len(hole)
    counts["traces_cut_at_holes"] += 1
    counts["rows_cut_at_holes"] += len(raw.time_s) - (kept.stop - kept.start)
    if kept.stop - kept.start < 2:
        raise _bad(raw, kept.start, "too_short", "too short: no two rows without a hole between them")
    return _take(raw, kept)


def _continuous(quaternion: np.ndarray) -> np.ndarray:
    """The same rotations with signs such that neighbors lie in one half of the sphere."""
    unit = quaternion / np.linalg.norm(quaternion, axis=1, keepdims=True)
    flip = np.sum(unit[1:] * unit[:-1], axis=1) < 0
    sign = np.concatenate([[1.0], np.where(np.cumsum(flip) % 2 == 1, -1.0, 1.0)])
    return unit * sign[:, None]
