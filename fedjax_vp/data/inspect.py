"""What a set of traces holds: counts, durations, speeds, and the error of predicting no motion.

No-motion windows: every ``now`` from 6 s of video time on whose 5 s of future are recorded; no history asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from fedjax_vp.data.head import euler_keeping_roll
from fedjax_vp.data.resample import great_circle_deg
from fedjax_vp.data.traces import TraceSet

HORIZONS_S = (0.2, 0.4, 0.6, 1.0, 2.0, 3.0, 4.0, 5.0)
_SPEED_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def no_motion_deg(
    traces: TraceSet, horizons_s: Sequence[float] = HORIZONS_S, start_s: float = 6.0
) -> tuple[dict[str, float | None], int]:
    """Mean great-circle error of predicting that the viewer stays.

    Args:
        traces: Sessions.
        horizons_s: Times ahead in seconds; the longest must be recorded in every window.
        start_s: Earliest video time of a window's last observed sample.

    Returns:
        Degrees by horizon ("0.2", "1", ...; None without windows), and the number of windows.
    """
    steps = [max(round(horizon * traces.rate_hz), 1) for horizon in horizons_s]
    trace, now = np.nonzero(traces.eligible(1, max(steps), start_s))
    here = traces.direction[trace, now]
    error_of: dict[str, float | None] = {}
    for horizon, step in zip(horizons_s, steps, strict=True):
        error = great_circle_deg(here, traces.direction[trace, now + step])
        error_of[f"{horizon:g}"] = float(error.mean(dtype=np.float64)) if len(error) else None
    return error_of, len(trace)


def speed_deg_per_s(traces: TraceSet) -> Float[np.ndarray, "step"]:
    """Angular speeds in degrees a second between neighboring valid samples of all traces."""
    both = traces.valid[:, 1:] & traces.valid[:, :-1]
    return great_circle_deg(traces.direction[:, 1:][both], traces.direction[:, :-1][both]) * traces.rate_hz


def summary(traces: TraceSet) -> dict[str, Any]:
    """Numbers that describe a data set, ready for JSON.

    Args:
        traces: Sessions.

    Returns:
        ``users, videos, sessions, rate_hz, no_motion_deg`` and more; what import mended under ``counts``.
    """
    error_of, num_windows = no_motion_deg(traces)
    length_s = traces.length / traces.rate_hz
    speed = speed_deg_per_s(traces)
    quantiles = np.quantile(speed, _SPEED_QUANTILES) if len(speed) else np.zeros(len(_SPEED_QUANTILES))
    history, horizon = round(2 * traces.rate_hz), round(5 * traces.rate_hz)
    return {
        "name": traces.name,
        "users": traces.num_users,
        "videos": traces.num_videos,
        "sessions": traces.num_traces,
        "rate_hz": traces.rate_hz,
        "samples": int(traces.valid.sum()),
        "hours": float(length_s.sum() / 3600),
        "duration_s": {
            "min": float(length_s.min()),
            "median": float(np.median(length_s)),
            "max": float(length_s.max()),
        },
        "latest_start_s": float(traces.t0.max()),
        "sessions_without_window": int((~traces.eligible(history, horizon).any(axis=1)).sum()),
        "speed_deg_per_s": {
            f"p{100 * q:g}": float(value) for q, value in zip(_SPEED_QUANTILES, quantiles, strict=True)
        },
        "windows": num_windows,
        "no_motion_deg": error_of,
        "counts": traces.counts,
        "labels": sorted(traces.labels),
        "channels": sorted(traces.channels),
    }


def netllm_windows(
    traces: TraceSet, users: Sequence[str], videos: Sequence[str]
) -> tuple[Int[np.ndarray, "window"], Int[np.ndarray, "window"]]:
    """Windows of NetLLM's protocol (Wu et al., SIGCOMM 2024): every 15th sample, ends trimmed.

    Args:
        traces: ``wu_mmsys17`` or ``jin_mmsys22`` at 5 Hz.
        users: Names of the users to take.
        videos: Names of the videos to take.

    Returns:
        Trace and ``now`` (last observed sample) of each window; the first future sample is number 30, 45, ...
        of a trace, and the last 60 samples start no future.
    """
    chosen = np.isin(np.array(traces.user_ids)[traces.user], users)
    chosen &= np.isin(np.array(traces.video_ids)[traces.video], videos)
    first = [np.arange(30, traces.length[trace] - 60, 15) for trace in np.flatnonzero(chosen)]
    trace = np.repeat(np.flatnonzero(chosen), [len(part) for part in first])
    return trace, (np.concatenate(first) - 1 if first else np.zeros(0, np.int64))


def netllm_mae(
    traces: TraceSet,
    trace: Int[np.ndarray, "window"],
    now: Int[np.ndarray, "window"],
    predicted: Float[np.ndarray, "window horizon 3"] | None = None,
    horizon: int = 20,
) -> float:
    """NetLLM's error: mean absolute difference over roll, pitch and yaw of the headset, wrapped to one turn.

    Args:
        traces: ``wu_mmsys17`` or ``jin_mmsys22`` at 5 Hz, with channel "euler".
        trace: Trace of each window.
        now: Last observed sample of each window.
        predicted: Unit directions of the future; the last observed roll to the horizon is kept. None: no
            motion, which repeats the last three angles.
        horizon: Future samples (4 s) when nothing is predicted.

    Returns:
        Degrees.
    """
    steps = horizon if predicted is None else predicted.shape[1]
    head = traces.channels["euler"]
    future = now[:, None] + 1 + np.arange(steps)[None, :]
    guess = head[trace, now][:, None, :]
    if predicted is not None:
        guess = np.degrees(euler_keeping_roll(predicted, np.radians(guess), traces.name))
    turn = np.abs(guess - head[trace[:, None], future]) % 360
    return float(np.minimum(turn, 360 - turn).mean(dtype=np.float64))
