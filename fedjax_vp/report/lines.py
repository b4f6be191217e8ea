"""Figures with one line a method: error over horizon, over rounds and bytes, and over the users."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, NullLocator, ScalarFormatter

from fedjax_vp.report import style
from fedjax_vp.report.folder import BASELINES
from fedjax_vp.report.style import End, Look

_PANEL_HORIZONS_S = (
    1.0,
    5.0,
)  # where short-term and long-term behavior show; the nearest evaluated are drawn
_BYTES_UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0))
_MAX_MARKERS = 12
_NO_MOTION = "no motion"


def over_horizon(
    horizons_s: Sequence[float],
    error_deg: Mapping[str, np.ndarray],
    half_deg: Mapping[str, np.ndarray] | None = None,
) -> Figure:
    """Mean error over the horizon, and its ratio to no motion where that is among the methods.

    Args:
        horizons_s: Horizons in seconds.
        error_deg: Mean error over horizons in degrees, by method.
        half_deg: Half of the 95 % interval over seeds, by method; drawn as bars, NaN draws nothing.
    """
    half_deg = half_deg or {}
    looks = style.looks(list(error_deg))
    reference = error_deg.get(_NO_MOTION)
    with matplotlib.rc_context(style.RC):
        figure, axes = _panels(1, 1 if reference is None else 2, list(error_deg), panel_in=(3.0, 2.9))
        scales = [np.ones(len(horizons_s))]
        if reference is not None:
            scales.append(100 / np.asarray(reference))
        for index, (one, scale) in enumerate(zip(axes[0], scales, strict=True)):
            for method, error in error_deg.items():
                if index == 1 and method == _NO_MOTION:
                    one.axhline(100, color=looks[method].color, linestyle=looks[method].dash)
                    continue
                _line(one, horizons_s, np.asarray(error) * scale, looks[method])
                _bars(one, horizons_s, np.asarray(error) * scale, half_deg.get(method), scale, looks[method])
            one.set_xlim(0, max(horizons_s))
            one.set_xlabel("prediction horizon (s)")
        axes[0][0].set_ylim(bottom=0)
        axes[0][0].set_ylabel("mean great-circle error (°)")
        relative = {method: np.asarray(error) * scales[-1] for method, error in error_deg.items()}
        if reference is not None:
            axes[0][1].set_ylabel("error relative to no motion (%)")
            axes[0][1].set_ylim(*_learned_range(relative))
        _label(axes[0][-1], {m: (max(horizons_s), error[-1]) for m, error in relative.items()}, looks)
    return figure


def over_training(histories: Mapping[str, pl.DataFrame]) -> Figure | None:
    """Error on the way, at a short and a long horizon, over rounds and over the bytes sent so far.

    Args:
        histories: By method: round, horizon_s, error_deg, bytes_up, bytes_down (cumulative), long form.

    Returns:
        The figure, or None where no method was measured on the way.
    """
    histories = {method: rows for method, rows in histories.items() if not rows.is_empty()}
    if not histories:
        return None
    horizons = _panel_horizons([rows["horizon_s"].unique().to_list() for rows in histories.values()])
    looks = style.looks(list(histories))
    sent = {m: (rows["bytes_up"] + rows["bytes_down"]).max() for m, rows in histories.items()}
    unit, scale = _bytes_unit(max(float(str(value)) for value in sent.values()))
    with matplotlib.rc_context(style.RC):
        figure, axes = _panels(len(horizons), 2, list(histories), panel_in=(3.0, 2.1))
        for row, horizon in zip(axes, horizons, strict=True):
            ends = {}
            for index, (method, rows) in enumerate(histories.items()):
                place = index / len(histories)
                at = rows.filter((pl.col("horizon_s") - horizon).abs() < 1e-3).sort("round")
                error = at["error_deg"].to_numpy()
                total = (at["bytes_up"] + at["bytes_down"]).to_numpy() / scale
                _line(row[0], at["round"].to_numpy(), error, looks[method], place=place)
                _line(row[1], total, error, looks[method], place=place)
                ends[method] = (float(total[-1]), float(error[-1]))
            _log_if_wide(row)
            row[0].set_ylabel(f"mean error at {horizon:g} s (°)")
            for one in row:
                one.set_xlim(left=0)
            _label(row[1], ends, looks)
        axes[-1][0].set_xlabel("round")
        axes[-1][1].set_xlabel(f"sent up and down so far ({unit})")
    return figure


def over_users(horizons_s: Sequence[float], by_user: Mapping[str, np.ndarray]) -> Figure:
    """Share of users whose mean error stays below a value, at a short and a long horizon.

    Args:
        horizons_s: Horizons in seconds.
        by_user: Mean error of every user in degrees, [user, horizon], by method.
    """
    looks = style.looks(list(by_user))
    horizons = _panel_horizons([list(horizons_s)])
    with matplotlib.rc_context(style.RC):
        figure, axes = _panels(1, len(horizons), list(by_user), panel_in=(3.0, 2.7), key_in=0.35)
        for one, horizon in zip(axes[0], horizons, strict=True):
            column = int(np.argmin(np.abs(np.asarray(horizons_s) - horizon)))
            for index, (method, error) in enumerate(by_user.items()):
                ordered = np.sort(error[:, column])
                share = 100 * np.arange(1, len(ordered) + 1) / len(ordered)
                x, y = np.append(ordered[:1], ordered), np.append(0, share)
                _line(one, x, y, looks[method], place=index / len(by_user), steps=True)
            one.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            one.set_ylim(0, 102)
            one.set_xlabel(f"a user's mean error at {horizon:g} s (°)")
        axes[0][0].set_ylabel("users (%)")
        _legend(figure, axes[0][-1], list(by_user), looks)
    return figure


def _legend(figure: Figure, axes: Axes, methods: list[str], looks: Mapping[str, Look]) -> None:
    """A key with line samples beside the last panel: ends of cumulative curves all meet at 100 %."""
    handles = [Line2D([], [], **looks[method].line()) for method in methods]
    box = axes.get_position()
    figure.legend(
        handles,
        methods,
        loc="center left",
        bbox_to_anchor=(box.x1 + 0.01, (box.y0 + box.y1) / 2),
        frameon=False,
        fontsize=8,
        handlelength=2.6,
    )


def _panels(
    rows: int, columns: int, labels: Sequence[str], panel_in: tuple[float, float], key_in: float = 0.0
) -> tuple[Figure, list[list[Axes]]]:
    """Axes with room for labels to the right of each row."""
    room = style.Room(0.75, 0.5, 0.18, style.label_width_in(labels) + key_in, across=0.8, down=0.3)
    figure, axes = style.panels(rows, columns, panel_in, room)
    return figure, [list(row) for row in axes]


def _line(
    axes: Axes,
    x: Sequence[float] | np.ndarray,
    y: np.ndarray,
    look: Look,
    *,
    place: float = 0,
    steps: bool = False,
) -> None:
    """A line with some markers; ``place`` in [0, 1) staggers them, so that coinciding lines all show."""
    every = max(1, math.ceil(len(y) / _MAX_MARKERS))
    drawn = "steps-post" if steps else "default"
    (line,) = axes.plot(x, y, markevery=(int(place * every), every), drawstyle=drawn, zorder=3, **look.line())
    # markers on the border stay whole, but a line that leaves through the top is cut
    line.set_clip_path(Rectangle((-0.1, -0.1), 1.2, 1.1, transform=axes.transAxes))


def _bars(
    axes: Axes,
    x: Sequence[float],
    y: np.ndarray,
    half: np.ndarray | None,
    scale: np.ndarray,
    look: Look,
) -> None:
    if half is not None and np.isfinite(half).all():
        axes.errorbar(
            x, y, np.asarray(half) * scale, fmt="none", ecolor=look.color, elinewidth=0.9, capsize=2.5
        )


def _label(axes: Axes, ends: Mapping[str, tuple[float, float]], looks: Mapping[str, Look]) -> None:
    """Label lines at their ends; one that ended above the panel says where."""
    top = axes.get_ylim()[1]
    placed = []
    for method, (x, y) in ends.items():
        text = f"{method} ↑ {y:.0f}" if y > top else method
        placed.append(End(float(x), float(min(y, top)), text, looks[method]))
    style.label_ends(axes, placed)


def _learned_range(relative: Mapping[str, np.ndarray]) -> tuple[float, float]:
    """Limits that show the learned methods and no motion; extrapolation goes far beyond and is cut."""
    shown = [error for method, error in relative.items() if method not in BASELINES] or list(
        relative.values()
    )
    low, high = min(float(e.min()) for e in shown), max(100.0, *(float(e.max()) for e in shown))
    return _padded(low, high, False)


def _panel_horizons(available: Sequence[Sequence[float]]) -> list[float]:
    """The horizons nearest to 1 s and 5 s that every method has."""
    common = sorted(set.intersection(*({round(float(h), 3) for h in one} for one in available)))
    chosen = [min(common, key=lambda h: abs(h - wanted)) for wanted in _PANEL_HORIZONS_S]
    return sorted(set(chosen))


def _bytes_unit(largest: float) -> tuple[str, float]:
    return next(((unit, scale) for unit, scale in _BYTES_UNITS if largest >= scale), _BYTES_UNITS[-1])


def _log_if_wide(row: Sequence[Axes]) -> None:
    """One logarithmic scale for a row of panels whose errors span more than a factor of three."""
    low = min(one.dataLim.y0 for one in row)
    high = max(one.dataLim.y1 for one in row)
    for one in row:
        if low > 0 and high / low > 3:
            one.set_yscale("log")
            one.yaxis.set_major_formatter(ScalarFormatter())
            one.yaxis.set_minor_locator(NullLocator())
            one.set_yticks([v for v in (1, 2, 5, 10, 20, 50, 100, 150) if low * 0.9 <= v <= high * 1.1])
        one.set_ylim(*_padded(low, high, one.get_yscale() == "log"))


def _padded(low: float, high: float, log: bool) -> tuple[float, float]:
    if log:
        return low / 1.05, high * 1.05
    pad = 0.05 * (high - low) or 0.5
    return low - pad, high + pad
