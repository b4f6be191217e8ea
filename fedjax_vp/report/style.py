"""How every figure looks: told apart without color, labeled at the lines, the same bytes for the same run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.optimize import isotonic_regression

# Okabe and Ito's palette without its yellow, too light for a line on white
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DASHES = ("-", (0, (5, 1.5)), (0, (3, 1, 1, 1)), (0, (6, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (2, 0.8)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_BASELINES = {"no motion": ("#555555", (0, (1, 1.2)), "x"), "velocity": ("#888888", (0, (4, 2)), "+")}
_LABEL_PT = 8.0
_MARK_X, _TEXT_X = 1.08, 1.105  # of labels, in widths of the axes
_LINE_FACTOR = 1.25  # line height of a label over its font size

RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "pdf.fonttype": 42,
    "figure.dpi": 100,
}


class Look(NamedTuple):
    """Color, line style and marker of a method."""

    color: str
    dash: Any
    marker: str

    def line(self) -> dict[str, Any]:
        """Keywords of a line with markers."""
        return {
            "color": self.color,
            "linestyle": self.dash,
            "marker": self.marker,
            "markerfacecolor": "white",
        }


class End(NamedTuple):
    """A line's last point and the label it gets."""

    x: float
    y: float
    text: str
    look: Look


class Room(NamedTuple):
    """Inches around panels, and between them."""

    left: float
    bottom: float
    top: float
    right: float
    across: float  # between columns
    down: float  # between rows


def panels(
    rows: int, columns: int, panel_in: tuple[float, float], room: Room, **shared: Any
) -> tuple[Figure, np.ndarray]:
    """A figure as large as its panels ask for, and these: [row, column].

    Their places can be worked out before anything is drawn. What is `shared` is `Figure.subplots`' own.
    """
    width = room.left + columns * panel_in[0] + (columns - 1) * room.across + room.right
    height = room.bottom + rows * panel_in[1] + (rows - 1) * room.down + room.top
    figure = Figure(figsize=(width, height))
    axes = figure.subplots(rows, columns, squeeze=False, **shared)
    figure.subplots_adjust(
        left=room.left / width,
        right=1 - room.right / width,
        bottom=room.bottom / height,
        top=1 - room.top / height,
        wspace=room.across / panel_in[0],
        hspace=room.down / panel_in[1],
    )
    return figure, axes


def looks(methods: Sequence[str]) -> dict[str, Look]:
    """A look for each method, in order; baselines are gray wherever they stand."""
    others = [method for method in methods if method not in _BASELINES]
    out = {method: Look(*_BASELINES[method]) for method in methods if method in _BASELINES}
    for index, method in enumerate(others):
        color = _COLORS[index % len(_COLORS)]
        out[method] = Look(color, _DASHES[index % len(_DASHES)], _MARKERS[index % len(_MARKERS)])
    return out


def label_ends(axes: Axes, ends: Sequence[End]) -> None:
    """Write each line's label to the right of the axes, moved up or down until no two overlap.

    The axes must have their final limits, scale and position. A thin line joins a point to its label, behind
    the line's marker.
    """
    if not ends:
        return
    figure = axes.get_figure(root=True)
    assert figure is not None
    height_pt = axes.get_position().height * figure.get_figheight() * 72
    gap = _LABEL_PT * _LINE_FACTOR / height_pt
    to_axes = axes.transData + axes.transAxes.inverted()
    points = to_axes.transform([(end.x, end.y) for end in ends])
    placed = spread(points[:, 1], gap)
    free = {"transform": axes.transAxes, "clip_on": False}
    for end, (x, y), label_y in zip(ends, points, placed, strict=True):
        look = end.look
        axes.plot([x, _MARK_X], [y, label_y], color=look.color, linewidth=0.5, **free)
        axes.plot(_MARK_X, label_y, **{**look.line(), "linestyle": "none"}, **free)
        axes.text(_TEXT_X, label_y, end.text, color=look.color, fontsize=_LABEL_PT, va="center", **free)


def spread(wanted: np.ndarray, gap: float, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """Heights at least ``gap`` apart, in the order wanted, near what was wanted and inside [low, high].

    Where they do not fit they are spread evenly.
    """
    wanted = np.asarray(wanted, np.float64)
    count = len(wanted)
    if count > 1:
        gap = min(gap, (high - low) / (count - 1))
    order = np.argsort(wanted, kind="stable")
    offset = gap * np.arange(count)
    # least squares under y[i+1] - y[i] >= gap is isotonic regression of wanted - offset
    fitted = isotonic_regression(wanted[order] - offset).x
    out = np.empty(count)
    out[order] = np.clip(fitted, low, high - offset[-1]) + offset
    return out


def label_width_in(labels: Sequence[str]) -> float:
    """Room in inches for labels to the right of the axes."""
    longest = max((len(label) for label in labels), default=0)
    return 0.42 + longest * _LABEL_PT * 0.62 / 72


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write PNG and PDF whose bytes depend on nothing but what is drawn."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    png, pdf = stem.with_suffix(".png"), stem.with_suffix(".pdf")
    with matplotlib.rc_context(RC):
        figure.savefig(png, dpi=200, metadata={"Software": None})
        figure.savefig(pdf, metadata={"Creator": None, "Producer": None, "CreationDate": None})
    return [png, pdf]
