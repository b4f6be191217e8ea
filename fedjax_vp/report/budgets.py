"""The figure of cold starts: error over what is known, a column for each thing counted, a row a horizon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from fedjax_vp.report import style
from fedjax_vp.report.style import End

_PANEL_IN = 3.0, 2.2


class Column(NamedTuple):
    """What is counted along the axis; counts stand at even distances."""

    label: str  # with its unit
    counts: Sequence[float]
    error_deg: Mapping[str, np.ndarray]  # [count, horizon] by line; NaN where it was not measured
    half_deg: Mapping[str, np.ndarray]  # of the 95 % interval; NaN draws nothing


def over_budgets(columns: Sequence[Column], horizons_s: Sequence[float]) -> Figure:
    """Error of every line over the counts of each column, a row a horizon."""
    names = list(dict.fromkeys(name for column in columns for name in column.error_deg))
    looks = style.looks(names)
    room = style.Room(0.7, 0.5, 0.2, style.label_width_in(names), across=0.25, down=0.25)
    with matplotlib.rc_context(style.RC):
        shape = len(horizons_s), len(columns)
        figure, axes = style.panels(*shape, _PANEL_IN, room, sharex="col", sharey="row")
        for at, row in enumerate(axes):
            for column, one in zip(columns, row, strict=True):
                place = np.arange(len(column.counts))
                for name, error in column.error_deg.items():
                    one.plot(place, error[:, at], clip_on=False, zorder=3, **looks[name].line())
                    half = column.half_deg[name][:, at]
                    if np.isfinite(half).any():
                        bars = {"ecolor": looks[name].color, "elinewidth": 0.9, "capsize": 2.5}
                        one.errorbar(place, error[:, at], half, fmt="none", **bars)
                one.set_xticks(place, [f"{count:g}" for count in column.counts])
            row[0].set_ylabel(f"mean error at {horizons_s[at]:g} s (°)")
        for column, one in zip(columns, axes[-1], strict=True):
            one.set_xlabel(column.label)
        for at, row in enumerate(axes):
            last = columns[-1]
            ends = [
                End(len(last.counts) - 1, float(error[-1, at]), name, looks[name])
                for name, error in last.error_deg.items()
            ]
            style.label_ends(row[-1], ends)
    return figure
