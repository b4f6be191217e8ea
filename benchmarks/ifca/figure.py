"""Success maps: a square is a point, its gray the share of data sets that succeed, its text the count."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from fedjax_vp.report.style import RC
from ifca.judgment import Point


class Panel(NamedTuple):
    """One map and the two settings that span it."""

    title: str
    points: list[Point]
    across: str
    up: str


def panels(found: Sequence[Point]) -> list[Panel]:
    """A map of m and n for each r where several (m, n) were run, else one of r and sigma."""
    out = []
    for sweep in dict.fromkeys(point["sweep"] for point in found):
        own = [point for point in found if point["sweep"] == sweep]
        k = own[0]["k"]
        if len({(point["m"], point["n"]) for point in own}) == 1:
            where = f"k = {k}, m = {own[0]['m']}, n = {own[0]['n']}"
            out.append(Panel(f"{sweep}: {where}", own, "r", "sigma"))
            continue
        for r, sigma in dict.fromkeys((point["r"], point["sigma"]) for point in own):
            some = [point for point in own if (point["r"], point["sigma"]) == (r, sigma)]
            out.append(Panel(f"{sweep}: k = {k}, r = {r:g}, σ = {sigma:g}", some, "m", "n"))
    return out


def draw(found: Sequence[Point], path: Path) -> None:
    """Writes the maps as one PNG."""
    maps = panels(found)
    with plt.rc_context({**RC, "axes.grid": False}):
        columns = math.ceil(math.sqrt(len(maps)))
        rows = -(-len(maps) // columns)
        figure, axes = plt.subplots(
            rows, columns, figsize=(3.4 * columns, 2.5 * rows), squeeze=False, layout="constrained"
        )
        for panel, place in zip(maps, axes.flat, strict=False):
            _draw(place, panel)
        for place in axes.flat[len(maps) :]:
            place.set_visible(False)
        figure.suptitle("IFCA: data sets solved from the best start and rate", x=0.01, ha="left", fontsize=10)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, metadata={"Software": None})
        plt.close(figure)


def _draw(axes: Axes, panel: Panel) -> None:
    across = sorted({point[panel.across] for point in panel.points})
    up = sorted({point[panel.up] for point in panel.points})
    for point in panel.points:
        x, y = across.index(point[panel.across]), up.index(point[panel.up])
        share = point["success"] / point["data_sets"]
        gray = str(1 - 0.85 * share)  # more success is darker, and no square is lost on black or white
        look = {"facecolor": gray, "edgecolor": "black", "linewidth": 0.6, "clip_on": False}
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, **look))
        low, high = point["interval"]
        text = f"{point['success']}/{point['data_sets']}\n{low:.2f}–{high:.2f}"
        axes.text(
            x, y, text, ha="center", va="center", fontsize=8, color="white" if share > 0.45 else "black"
        )
    names = {"sigma": "noise σ", "r": "separation r", "m": "machines m", "n": "samples a machine n"}
    axes.set(xlim=(-0.5, len(across) - 0.5), ylim=(-0.5, len(up) - 0.5))
    axes.set_xticks(range(len(across)), [f"{value:g}" for value in across])
    axes.set_yticks(range(len(up)), [f"{value:g}" for value in up])
    axes.set(xlabel=names[panel.across], ylabel=names[panel.up], title=panel.title)
    axes.tick_params(length=0)
