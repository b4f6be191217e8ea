"""Figures of a data set: where viewers look, and how some of them move."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedjax_vp.data.inspect import HORIZONS_S, no_motion_deg, speed_deg_per_s
from fedjax_vp.data.traces import TraceSet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LINES = ("-", "--", ":", "-.")
_BIN_DEG = 5


def draw(traces: TraceSet, folder: Path) -> list[Path]:
    """Write the heat map, sample trajectories, and speeds with no-motion errors, each as PNG and PDF.

    Args:
        traces: Sessions.
        folder: Made if absent.

    Returns:
        The files written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"heatmap": heat_map(traces), "trajectories": trajectories(traces), "motion": motion(traces)}
    files = []
    for name, figure in figures.items():
        for suffix in (".png", ".pdf"):
            files.append(folder / f"{traces.name}_{name}{suffix}")
            figure.savefig(files[-1], dpi=150)
    return files


def heat_map(traces: TraceSet) -> Figure:
    """Share of viewing time by direction on the equirectangular image, a bin per 5 x 5 degrees."""
    yaw, elevation = _angles_deg(traces.direction[traces.valid])
    edges = (np.arange(-180, 181, _BIN_DEG), np.arange(-90, 91, _BIN_DEG))
    count, _, _ = np.histogram2d(yaw, elevation, bins=edges)
    share = count.T / max(len(yaw), 1) * 1000
    figure = _figure(8.0, 4.0)
    axes = figure.subplots()
    # a bin near a pole covers less of the sphere; the image shows bins, as a tile server would see them
    image = axes.pcolormesh(
        *edges, np.log10(share, where=share > 0, out=np.full_like(share, np.nan)), cmap="cividis"
    )
    figure.colorbar(image, label="share of time per bin, log10 of per mille")
    _world(axes)
    axes.set_title(f"{traces.name}: {traces.num_traces} sessions")
    return figure


def trajectories(traces: TraceSet, num_traces: int = 4) -> Figure:
    """Some sessions on the image, and their yaw and elevation over video time."""
    figure = _figure(8.0, 7.0)
    world, yaw_axes, elevation_axes = figure.subplots(3, 1, height_ratios=(2, 1, 1))
    chosen = np.unique(np.linspace(0, traces.num_traces - 1, num_traces).astype(int))
    for line, trace in zip(_LINES * len(chosen), chosen, strict=False):
        length = int(min(traces.length[trace], 30 * traces.rate_hz))
        time_s = traces.time_s()[trace, :length]
        yaw, elevation = _angles_deg(traces.direction[trace, :length])
        jump = np.concatenate([np.abs(np.diff(yaw)) > 180, [False]])
        broken = np.where(jump, np.nan, yaw)  # no line across the seam of the image
        name = f"user {traces.user_ids[traces.user[trace]]}, video {traces.video_ids[traces.video[trace]]}"
        world.plot(broken, elevation, line, lw=1, label=name)
        yaw_axes.plot(time_s, broken, line, lw=1)
        elevation_axes.plot(time_s, elevation, line, lw=1)
    _world(world)
    world.legend(fontsize=7, loc="lower left")
    world.set_title(f"{traces.name}: the first 30 s of some sessions")
    yaw_axes.set(ylabel="yaw left (deg)", ylim=(-180, 180))
    elevation_axes.set(ylabel="elevation (deg)", ylim=(-90, 90), xlabel="video time (s)")
    return figure


def motion(traces: TraceSet) -> Figure:
    """Distribution of angular speed, and the error of predicting no motion over the horizon."""
    figure = _figure(8.0, 3.5)
    left, right = figure.subplots(1, 2)
    speed = np.sort(speed_deg_per_s(traces))
    shown = speed[:: max(len(speed) // 2000, 1)]
    left.plot(shown, np.linspace(0, 1, len(shown)), "k-")
    left.set(
        xscale="symlog",
        xlabel="angular speed (deg/s)",
        ylabel="share of samples",
        ylim=(0, 1),
        xlim=(0, None),
    )
    error_of, num_windows = no_motion_deg(traces)
    if num_windows:
        right.plot(HORIZONS_S, [error_of[f"{h:g}"] for h in HORIZONS_S], "ko-")
    right.set(xlabel="horizon (s)", ylabel="no-motion error (deg)", ylim=(0, None), xlim=(0, None))
    figure.suptitle(f"{traces.name}: {num_windows} windows")
    return figure


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _world(axes: object) -> None:
    axes.set(  # type: ignore[attr-defined]
        xlim=(180, -180),
        ylim=(-90, 90),
        xlabel="yaw left (deg)",
        ylabel="elevation (deg)",
        aspect="equal",
        xticks=range(-180, 181, 60),
        yticks=range(-90, 91, 30),
    )


def _angles_deg(direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y, z = np.moveaxis(direction, -1, 0)
    return np.degrees(np.arctan2(y, x)), np.degrees(np.arcsin(np.clip(z, -1, 1)))
