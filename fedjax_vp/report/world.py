"""World map of some windows: past, true and predicted viewport on the equirectangular image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fedjax_vp import geometry
from fedjax_vp.data.resample import great_circle_deg
from fedjax_vp.report import style

_QUANTILES = (0.25, 0.5, 0.75, 0.95)  # of the error among the windows: what went well and what did not
_PAST = {"color": "#555555", "linestyle": (0, (1, 1)), "linewidth": 1.6}
_TRUE = {"color": "#000000", "linestyle": "-", "linewidth": 1.4}
_PREDICTED = {"color": "#D55E00", "linestyle": (0, (4, 1.5)), "linewidth": 1.6}
_PATHS = ("past", "true", "predicted")
_SIDE = 60  # points on each side of a field of view


def world_map(examples: Mapping[str, np.ndarray], horizon_s: float) -> Figure | None:
    """Windows at quantiles of the error, each a panel with the fields of view at the end of the horizon.

    Args:
        examples: past [n, history, 3], true and predicted [n, horizon, 3] unit vectors; session, now_s [n].
        horizon_s: Horizon of the last predicted sample, in seconds.

    Returns:
        The figure, or None where there is no window.
    """
    if not examples or len(examples["past"]) == 0:
        return None
    error_deg = great_circle_deg(examples["true"][:, -1], examples["predicted"][:, -1])
    chosen = choose(error_deg)
    columns = min(2, len(chosen))
    rows = -(-len(chosen) // columns)
    with matplotlib.rc_context(style.RC):
        width, height = 0.67 + 3.5 * columns, 0.75 + 2.1 * rows
        figure = Figure(figsize=(width, height))
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        figure.subplots_adjust(
            left=0.67 / width, right=1 - 0.12 / width, top=1 - 0.25 / height, bottom=0.78 / height,
            wspace=0.08, hspace=0.2,
        )  # fmt: skip
        for one, index in zip(grid.flat, chosen, strict=False):
            _window(one, {name: examples[name][index] for name in _PATHS})
            one.set_title(
                f"session {int(examples['session'][index])}, {float(examples['now_s'][index]):.1f} s: "
                f"{error_deg[index]:.0f}° off after {horizon_s:g} s"
            )
        for one in list(grid.flat)[len(chosen) :]:
            one.set_axis_off()
        for one in grid[-1]:
            one.set_xlabel("yaw (°, left positive)")
        for one in grid[:, 0]:
            one.set_ylabel("elevation (°)")
        figure.legend(
            handles=_key(),
            loc="lower center",
            ncols=4,
            frameon=False,
            fontsize=8,
            handlelength=2.8,
            columnspacing=1.2,
        )
    return figure


def choose(error_deg: Float[np.ndarray, "window"]) -> list[int]:
    """Windows nearest to quantiles of the error, in ascending order of error, without repeats."""
    order = np.argsort(error_deg, kind="stable")
    places = [round(q * (len(order) - 1)) for q in _QUANTILES]
    return [int(order[place]) for place in dict.fromkeys(places)]


def field_outline(
    direction: Float[np.ndarray, "3"], field_deg: tuple[float, float] = geometry.FIELD_DEG
) -> Float[np.ndarray, "point 3"]:
    """Border of a head's field of view without roll (gnomonic), closed, as unit vectors."""
    east, north = (np.asarray(axis) for axis in geometry.tangent_basis(jnp.asarray(direction)))
    width, height = (np.tan(np.radians(opening) / 2) for opening in field_deg)
    side, one = np.linspace(-1, 1, _SIDE), np.ones(_SIDE)
    across = np.concatenate([side, one, -side, -one]) * width
    up = np.concatenate([-one, side, one, -side]) * height
    points = direction[None, :] + across[:, None] * east[None, :] + up[:, None] * north[None, :]
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def on_map(path: Float[np.ndarray, "point 3"]) -> tuple[np.ndarray, np.ndarray]:
    """Yaw and elevation in degrees of a path, cut (by NaN) where it leaves the image's side.

    Returns:
        Yaw and elevation, [point + 3 * cuts]: at a cut the path runs to one border and on from the other.
    """
    yaw = np.degrees(np.arctan2(path[:, 1], path[:, 0]))
    elevation = np.degrees(np.arcsin(np.clip(path[:, 2], -1, 1)))
    xs, ys = [yaw[0]], [elevation[0]]
    for a, b, low, high in zip(yaw[:-1], yaw[1:], elevation[:-1], elevation[1:], strict=True):
        if abs(b - a) > 180:
            border = 180.0 if a > 0 else -180.0
            inside = abs(border - a)
            share = inside / max(360 - abs(b - a), 1e-9)
            middle = low + share * (high - low)
            xs += [border, np.nan, -border]
            ys += [middle, np.nan, middle]
        xs.append(b)
        ys.append(high)
    return np.array(xs), np.array(ys)


def _window(axes: Axes, window: Mapping[str, np.ndarray]) -> None:
    now = window["past"][-1:]
    parts: list[tuple[np.ndarray, dict[str, Any], str]] = [
        (window["past"], _PAST, ""),
        (np.concatenate([now, window["true"]]), _TRUE, "s"),
        (np.concatenate([now, window["predicted"]]), _PREDICTED, "^"),
    ]
    for path, look, marker in parts:
        axes.plot(*on_map(path), **look)
        if marker:
            x, y = on_map(path[-1:])
            axes.plot(x, y, marker=marker, color=look["color"], markerfacecolor="white", zorder=4)
            outline = {**look, "linewidth": 0.9}
            axes.plot(*on_map(field_outline(path[-1])), **outline)
    axes.plot(*on_map(now), marker="o", color="#555555", zorder=4)
    axes.set_xlim(180, -180)  # the viewer's left is the image's left
    axes.set_ylim(-90, 90)
    axes.set_xticks([120, 60, 0, -60, -120])
    axes.set_yticks([-90, -45, 0, 45, 90])
    axes.set_aspect("equal")
    axes.spines[["top", "right"]].set_visible(True)


def _key() -> list[Line2D]:
    width, height = geometry.FIELD_DEG
    hollow = {"markerfacecolor": "white"}
    return [
        Line2D([], [], label="past", marker="o", **_PAST),
        Line2D([], [], label="true", marker="s", **hollow, **_TRUE),
        Line2D([], [], label="predicted", marker="^", **hollow, **_PREDICTED),
        Line2D(
            [], [], label=f"outlines: {width:g}° × {height:g}° field of view at the end", linestyle="none"
        ),
    ]
