"""The figure of learned groups: how alike updates are within and between them, their sizes, and who moves."""

from __future__ import annotations

import matplotlib
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedjax_vp.report import style
from fedjax_vp.report.style import Look

_PANEL_IN = 3.2, 2.0
_ROOM = style.Room(0.7, 0.5, 0.35, 1.5, across=0.45, down=0.2)
_GRAYS = ("#d9d9d9", "#f2f2f2")  # of neighboring groups
_LINES = {
    "within": ("within groups", Look("#0072B2", "-", "o")),
    "between": ("between groups", Look("#D55E00", (0, (5, 1.5)), "s")),
    "alpha_cross_max": ("best bipartition", Look("#555555", "none", "x")),
    "ari": ("ARI", Look("#009E73", "-", "^")),
    "nmi": ("NMI", Look("#CC79A7", (0, (3, 1, 1, 1)), "D")),
    "churn": ("units that move", Look("#000000", (0, (2, 0.8)), "v")),
}
_MAX_MARKERS = 12


def over_rounds(groups: pl.DataFrame) -> Figure | None:
    """Similarity of updates, agreement with known groups, sizes and churn over rounds, a column a level.

    Args:
        groups: groups.parquet of a run; missing columns and nulls are what is not known.

    Returns:
        The figure, or None where no level is learned.
    """
    if groups.is_empty():
        return None
    levels = groups["level"].unique(maintain_order=True).to_list()
    panels = [name for name, has in {"alike": "within", "true": "ari"}.items() if _known(groups, has).height]
    panels.append("sizes")
    with matplotlib.rc_context(style.RC):
        shape = len(panels), len(levels)
        figure, axes = style.panels(*shape, _PANEL_IN, _ROOM, sharex="col", sharey="row")
        for column, level in zip(axes.T, levels, strict=True):
            rows = groups.filter(pl.col("level") == level).sort("round")
            for panel, one in zip(panels, column, strict=True):
                _DRAW[panel](one, rows)
            column[0].set_title(level)
            column[-1].set_xlabel("round")
            column[-1].set_xlim(left=0)
        for panel, row in zip(panels, axes, strict=True):
            row[0].set_ylabel(_TITLES[panel])
            _key(row)
    return figure


def _alike(axes: Axes, rows: pl.DataFrame) -> None:
    """The picture that clustered federated learning rests on, its splits marked."""
    for name in ("within", "between", "alpha_cross_max"):
        _line(axes, rows, name)
    axes.set_ylim(-1.05, 1.05)
    if not _known(rows, "within").height:
        note = {"ha": "center", "va": "center", "color": "#555555", "transform": axes.transAxes}
        axes.text(0.5, 0.5, "groups follow from losses", **note)
    for done, splits in _known(rows, "splits").select("round", "splits").rows():
        if splits:
            axes.axvline(done, color="#000000", linewidth=0.8, zorder=1)
            top = axes.get_xaxis_transform()
            text = "split" if splits == 1 else f"{splits} splits"
            axes.text(done, 0.02, f" {text}", transform=top, fontsize=7, va="bottom")


def _true(axes: Axes, rows: pl.DataFrame) -> None:
    _line(axes, rows, "ari")
    _line(axes, rows, "nmi")
    axes.set_ylim(-0.05, 1.05)


def _sizes(axes: Axes, rows: pl.DataFrame) -> None:
    """Groups' shares of the units, the largest at the bottom, and the share of units that moved."""
    known = _known(rows, "sizes")
    sizes = known["sizes"].to_list()
    most = max((len(one) for one in sizes), default=0)
    share = np.zeros((len(sizes), most))
    for row, one in zip(share, sizes, strict=True):
        row[: len(one)] = np.asarray(one) / max(sum(one), 1)
    edge = np.cumsum(share, axis=1)
    for place in range(most):
        low = edge[:, place - 1] if place else np.zeros(len(edge))
        color = _GRAYS[place % 2]
        axes.fill_between(
            known["round"].to_numpy(),
            low,
            edge[:, place],
            step="post",
            color=color,
            edgecolor="#888888",
            lw=0.6,
        )
    _line(axes, rows, "churn")
    axes.set_ylim(0, 1.02)


_DRAW = {"alike": _alike, "true": _true, "sizes": _sizes}
_TITLES = {"alike": "cosine of updates", "true": "agreement with truth", "sizes": "share of units"}


def _line(axes: Axes, rows: pl.DataFrame, name: str) -> None:
    """One column over rounds; of a list, such as one number a group, every value."""
    known = _known(rows, name)
    if not known.height:
        return
    if known.schema[name] == pl.List(pl.Float64):
        known = known.explode(name).drop_nulls(name)
    label, look = _LINES[name]
    every = max(1, known.height // _MAX_MARKERS) if look.dash != "none" else 1
    axes.plot(known["round"], known[name], label=label, markevery=every, **look.line())


def _known(rows: pl.DataFrame, name: str) -> pl.DataFrame:
    """Rows where a column is known; none where it is missing."""
    return rows.drop_nulls(name) if name in rows.columns else rows.clear()


def _key(row: np.ndarray) -> None:
    """One key for a row of panels, beside the last."""
    found = {}
    for one in row:
        found |= {label: handle for handle, label in zip(*one.get_legend_handles_labels(), strict=True)}
    if found:
        place = {"loc": "center left", "bbox_to_anchor": (1.02, 0.5), "frameon": False, "fontsize": 8}
        row[-1].legend(list(found.values()), list(found), handlelength=2.6, **place)
